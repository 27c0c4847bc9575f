// The machine as a guest finds it: guest-physical addresses, interrupts (GSIs) and ports.
//
// Guests keep these numbers in their RAM, and RAM outlives a process in snapshots: this table is an
// ABI. The same numbers stand in dsdt.asl, which cannot include this file; a test compares the two.
//
//   guest-physical                                              e820
//   0x0000'0000 - 0x0009'ffff  RAM; what the kernel starts with  RAM
//   0x000a'0000 - 0x000d'ffff  RAM that no guest is told of      reserved
//   0x000e'0000 - 0x000f'dfff  RSDP and ACPI tables              reserved
//   0x000f'e000 - 0x000f'efff  machine facts, read by the DSDT   reserved
//   0x000f'f000 - 0x000f'ffff  VM generation ID, reset vector    reserved
//   0x0010'0000 - low end      RAM; kernel, initrd at the top    RAM
//   0xc000'0000 - 0xffff'ffff  devices                           -
//   0x1'0000'0000 - high end   RAM                               RAM
//
// The reserved RAM lies below 1 MiB because Linux maps that range write-back whatever the MTRRs say
// (arch/x86/mm/pat/memtype.c, the ISA range), and because a guest without RSDP pointer looks there
// (ACPI 6.4, 5.2.5.1 "Finding the RSDP on IA-PC Systems").

#pragma once

#include <array>

#include "vmm/base/types.h"
#include "vmm/memory/guest_memory.h"

namespace boot {

// --- RAM below 1 MiB, written before the guest starts ------------------------------------------

inline constexpr u64 kStartInfoAddress = 0x1000;  // one page: GDT, PVH start info and its lists
inline constexpr u64 kGdtAddress = kStartInfoAddress;
inline constexpr u64 kHvmStartInfoAddress = kStartInfoAddress + 0x100;
inline constexpr u64 kStackTop = 0x7000;           // grows down over RAM that nobody uses
inline constexpr u64 kZeroPageAddress = 0x7000;    // struct boot_params
inline constexpr u64 kSetupDataAddress = 0x8000;   // SETUP_RNG_SEED
inline constexpr u64 kPageTablesAddress = 0x9000;  // six pages: PML4, PDPT, four PDs
inline constexpr u64 kPageTablesBytes = 6 * base::kPageBytes;
inline constexpr u64 kCommandLineAddress = 0x20000;
inline constexpr u64 kCommandLineAreaBytes = 0x10000;  // the terminating NUL included
inline constexpr u64 kLegacyHoleStart = 0xa0000;       // end of conventional RAM

inline constexpr u64 kAcpiTablesStart = 0xe0000;  // the RSDP is the first byte
inline constexpr u64 kAcpiTablesEnd = 0xfe000;
inline constexpr u64 kMachineFactsAddress = 0xfe000;
inline constexpr u64 kGenerationIdAddress = 0xff000;  // VMGenID, 16 bytes
inline constexpr u64 kResetVectorAddress = 0xffff0;   // F000:FFF0, 16 bytes of real-mode code
inline constexpr u64 kKernelAreaStart = 0x100000;  // kernel and initrd lie from here to the low end

static_assert(kPageTablesAddress + kPageTablesBytes <= kCommandLineAddress);
static_assert(kCommandLineAddress + kCommandLineAreaBytes <= kLegacyHoleStart);

// --- the device hole, [3 GiB, 4 GiB) -----------------------------------------------------------

inline constexpr u32 kVirtioSlotCount = 16;
inline constexpr u64 kVirtioSlotsAddress = 0xd0000000;
inline constexpr u64 kVirtioSlotBytes = 0x1000;
constexpr u64 virtio_slot_address(u32 slot) {
  return kVirtioSlotsAddress + slot * kVirtioSlotBytes;
}

inline constexpr u64 kIoApicAddress = 0xfec00000;
inline constexpr u64 kLocalApicAddress = 0xfee00000;
// KVM_SET_IDENTITY_MAP_ADDR and KVM_SET_TSS_ADDR: one page and three, for Intel without
// "unrestricted guest". Nothing else may lie there.
inline constexpr u64 kKvmIdentityMapAddress = 0xfffbc000;
inline constexpr u64 kKvmTssAddress = 0xfffbd000;

static_assert(kVirtioSlotsAddress >= memory::kLowRamLimit);

// --- interrupts --------------------------------------------------------------------------------

inline constexpr u32 kSerialGsi = 4;
inline constexpr u32 kEventGsi = 9;  // generic event device: power button, generation ID. Edge.
// Every pin of the IOAPIC that no legacy device owns: PIT 0, keyboard 1, cascade 2, serial 3 and 4,
// RTC 8, events 9, coprocessor 13. All edge-triggered, active high.
inline constexpr std::array<u8, kVirtioSlotCount> kVirtioSlotGsi{5,  6,  7,  10, 11, 12, 14, 15,
                                                                 16, 17, 18, 19, 20, 21, 22, 23};
inline constexpr u32 kIoApicPinCount = 24;
inline constexpr u32 kMaximumVcpuCount = 64;  // one byte of APIC ID suffices; vCPU n has APIC ID n

// --- ports -------------------------------------------------------------------------------------

inline constexpr u16 kSerialPort = 0x3f8;  // COM1, 8 ports
inline constexpr u16 kSerialPortCount = 8;

inline constexpr u16 kPowerPort = 0x600;  // 8 ports, the five registers below
inline constexpr u16 kPowerPortCount = 8;
// ACPI 6.4, 4.8.3.6 "Reset Register". One byte; writing kResetValue resets the machine.
inline constexpr u16 kResetPort = 0x600;
inline constexpr u8 kResetValue = 1;
// ACPI 6.4, 4.8.3.7 "Sleep Control and Status Registers". One byte each. Control: SLP_TYP in bits
// 4:2, SLP_EN bit 5. Type 5 is the S5 of the DSDT: power off. Status reads 0; writes are ignored.
inline constexpr u16 kSleepControlPort = 0x601;
inline constexpr u16 kSleepStatusPort = 0x602;
inline constexpr u8 kSleepTypeSoftOff = 5;
// Our own, read by the DSDT's event method: four bytes, read at once. Answers the pending EventBit
// set and clears it. The event interrupt is pulsed after a bit was set.
inline constexpr u16 kEventPort = 0x604;
inline constexpr u32 kEventPowerButton = 1 << 0;
inline constexpr u32 kEventGenerationId = 1 << 1;

}  // namespace boot
