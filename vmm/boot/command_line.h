// The kernel's command line in guest RAM.

#pragma once

#include <string_view>

#include "vmm/base/result.h"
#include "vmm/memory/guest_memory.h"

namespace boot {

// Linux on x86 cuts a longer one off without a word (COMMAND_LINE_SIZE 2048, the NUL included). A
// bzImage states its own limit in cmdline_size; for the others this one holds.
inline constexpr u64 kDefaultCommandLineMaximum = 2047;

// Writes the text and a NUL to kCommandLineAddress. Refuses more than `maximum_bytes` (without the
// NUL), control characters and NUL.
Result<void> write_command_line(memory::GuestMemory& memory, std::string_view text,
                                u64 maximum_bytes);

}  // namespace boot
