// Sizes as people write them: "512M", "2G", "1T"; powers of 1024, as qemu-img reads them.

#pragma once

#include <string>
#include <string_view>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace control {

// Digits and at most one of k, M, G, T. `bare_unit` is what a number without a letter counts:
// 1 for bytes, 1 MiB for memory (where "512" can only mean megabytes).
Result<u64> parse_size(std::string_view what, std::string_view text, u64 bare_unit);

// The shortest exact form: 2147483648 is "2G", 1536 MiB is "1536M", 1000 is "1000".
std::string format_size(u64 bytes);

// For people: three digits and a binary unit, "14.2 MiB".
std::string human_size(u64 bytes);

}  // namespace control
