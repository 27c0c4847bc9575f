// The ACPI tables: hardware-reduced, without firmware, PCI, keyboard controller, RTC or VGA.
//
// RSDP, XSDT, FADT and MADT are composed here; the DSDT is dsdt.asl, compiled when the program is
// built. The DSDT is the same on every machine, whatever devices it has: a guest keeps its parse of
// it in RAM. What varies stands in the machine facts, a page that the DSDT reads.

#pragma once

#include <span>

#include "vmm/base/result.h"
#include "vmm/boot/layout.h"
#include "vmm/memory/guest_memory.h"

namespace boot::acpi {

// Where the machine differs from another one. Read by dsdt.asl.
struct MachineFacts {
  le32 virtio_slots_present;  // 0  bit n: slot n holds a device
};
static_assert(base::WireType<MachineFacts> && sizeof(MachineFacts) == 4);

// Writes all tables, the machine facts and a random generation ID (Microsoft, "Virtual Machine
// Generation ID"; devices::Power changes it) to their places in layout.h. The RSDP is at
// kAcpiTablesStart. Fails if `vcpu_count` is 0 or above kMaximumVcpuCount, or when the host has no
// random numbers.
Result<void> build_tables(memory::GuestMemory& memory, u32 vcpu_count, u16 virtio_slots_present);

// The compiled dsdt.asl, its header fields as iasl left them.
std::span<const u8> compiled_dsdt();

}  // namespace boot::acpi
