// ELF64 kernels: their segments go to the physical addresses of the program headers.
//
// ELF-64 Object File Format 1.5, and the note of Xen's public/elfnote.h that carries a PVH entry.

#pragma once

#include <optional>

#include "vmm/base/result.h"
#include "vmm/boot/kernel_file.h"

namespace boot {

struct ElfKernel {
  AddressRange occupied;         // from the lowest to the highest byte of all segments
  u64 entry = 0;                 // e_entry, taken as a physical address; checked by nobody yet
  std::optional<u32> pvh_entry;  // XEN_ELFNOTE_PHYS32_ENTRY
};

// Whether the file begins with 0x7f "ELF".
bool looks_like_elf(const KernelFile& file);

// Loads all segments. The entry that will be used (the note's, or else e_entry) lies in the file
// bytes of one of them.
Result<ElfKernel> load_elf(const KernelFile& file, memory::GuestMemory& memory);

}  // namespace boot
