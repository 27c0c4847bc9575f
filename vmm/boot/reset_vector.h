// The reset vector: real-mode code at F000:FFF0 that resets the machine.
//
// Where firmware would begin, some guests jump to reboot. Linux does on a machine with hardware-
// reduced ACPI and without EFI: it takes EFI for the required way, finds none and goes on to the
// BIOS (efi_reboot_required() and BOOT_EFI in arch/x86/kernel/reboot.c), without ever trying the
// FADT's reset register.

#pragma once

#include "vmm/memory/guest_memory.h"

namespace boot {

void write_reset_vector(memory::GuestMemory& memory);

}  // namespace boot
