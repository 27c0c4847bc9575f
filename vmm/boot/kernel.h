// Puts a kernel, its initrd and its command line into the RAM of a machine that has not started,
// and says with which registers the first vCPU begins.
//
// Three forms are taken, told apart by their first bytes:
//   bzImage           Linux x86 boot protocol 2.12 or newer with a 64-bit entry; a stock vmlinuz
//   ELF with PVH note entry in 32-bit protected mode, taken wherever the note exists
//   ELF without       the 64-bit entry of a Linux vmlinux, with a zero page
// A stock vmlinux can do both of the latter. The note wins: it says how the file wants to be
// entered, while the entry field of an ELF says nothing about what belongs into the registers. The
// price is that PVH has no way to hand over a random seed.
//
// Kernel files are hostile: every number is checked before it is used, nothing is allocated by
// their claims, and file contents go from the file straight into guest RAM.

#pragma once

#include <optional>
#include <string>

#include "vmm/base/result.h"
#include "vmm/boot/start_registers.h"
#include "vmm/memory/guest_memory.h"

namespace boot {

struct BootConfig {
  std::string kernel_path{};
  std::optional<std::string> initrd_path{};
  std::string command_line{};
  u32 vcpu_count = 1;
  u16 virtio_slots_present = 0;  // bit n: slot n holds a device
};

// Writes the kernel, what it is handed, and the ACPI tables.
// REQUIRES: `memory` as created, that is all zero; after an Error its content is undefined.
Result<StartRegisters> load_kernel(memory::GuestMemory& memory, const BootConfig& config);

}  // namespace boot
