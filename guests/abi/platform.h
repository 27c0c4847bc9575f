// The machine as a freestanding guest sees it, and the words in which a guest and the test that
// started it speak to each other. Guests, the VMM's tests and nobody else include this; it is C and
// C++ and assembler, so it holds macros only.

#ifndef GUESTS_ABI_PLATFORM_H_
#define GUESTS_ABI_PLATFORM_H_

// --- addresses (they mirror vmm/boot/layout.h) --------------------------------------------------

#define PLATFORM_COM1 0x3f8
#define PLATFORM_COM1_IRQ 4
#define PLATFORM_VIRTIO_BASE 0xd0000000
#define PLATFORM_VIRTIO_STRIDE 0x1000
#define PLATFORM_VIRTIO_SLOTS 16
#define PLATFORM_IOAPIC 0xfec00000
#define PLATFORM_LAPIC 0xfee00000

// ACPI 6.4, 4.8.3.6 "Reset Register".
#define PLATFORM_RESET_PORT 0x600
#define PLATFORM_RESET_VALUE 1
// ACPI 6.4, 4.8.3.7 "Sleep Control and Status Registers": SLP_TYP 5 and SLP_EN.
#define PLATFORM_SLEEP_CONTROL_PORT 0x601
#define PLATFORM_SLEEP_CONTROL_POWER_OFF 0x34

// QEMU's microvm, where the guests can run too: the same devices elsewhere.
#define MICROVM_VIRTIO_BASE 0xfeb00000
#define MICROVM_VIRTIO_STRIDE 0x200

// --- what a guest keeps in place ----------------------------------------------------------------

#define GUEST_LOAD_ADDRESS 0x100000
#define GUEST_TRAMPOLINE 0x8000  // application processors start here, in real mode
#define GUEST_MAXIMUM_CPUS 16
// Commands that dirty, map and hash memory work from here to the end of RAM.
#define GUEST_ARENA 0x400000

// --- words on the serial line -------------------------------------------------------------------

// A guest that is ready for commands, and one that has judged itself: "GUEST-EXIT 0" is success, any
// other number is the failure listed at the top of the guest's source.
#define GUEST_READY_WORD "READY"
#define GUEST_EXIT_WORD "GUEST-EXIT"

#endif  // GUESTS_ABI_PLATFORM_H_
