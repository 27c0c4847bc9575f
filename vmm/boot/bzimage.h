// bzImage: the form of a stock Linux kernel, entered by the 64-bit boot protocol (Linux 6.1,
// Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
//
//   file:   boot sector + setup_sects sectors of real-mode code, not used except for the header
//           syssize * 16 bytes, loaded at pref_address and entered 0x200 bytes in
//           perhaps a signature, ignored

#pragma once

#include "vmm/boot/kernel.h"
#include "vmm/boot/kernel_file.h"

namespace boot {

// Whether "HdrS" stands where a bzImage has it.
bool looks_like_bzimage(const KernelFile& file);

Result<StartRegisters> load_bzimage(const KernelFile& file, memory::GuestMemory& memory,
                                    const BootConfig& config);

}  // namespace boot
