// ACPI tables as they lie in memory. ACPI Specification 6.4.

#pragma once

#include <array>

#include "vmm/base/wire.h"

namespace boot::acpi {

using Signature = std::array<u8, 4>;

constexpr Signature signature(const char (&text)[5]) {
  Signature result{};
  for (std::size_t i = 0; i < result.size(); ++i) result.at(i) = static_cast<u8>(text[i]);
  return result;
}

// 5.2.5.3 "Root System Description Pointer (RSDP) Structure"
struct Rsdp {
  u8 signature[8];       //  0  "RSD PTR "
  u8 checksum;           //  8  the first 20 bytes sum to 0
  u8 oem_id[6];          //  9
  u8 revision;           // 15  2
  le32 rsdt_address;     // 16  0: there is an XSDT
  le32 length;           // 20
  le64 xsdt_address;     // 24
  u8 extended_checksum;  // 32  all bytes sum to 0
  u8 reserved[3];        // 33
};
static_assert(base::WireType<Rsdp> && sizeof(Rsdp) == 36);
inline constexpr u64 kRsdpFirstPartBytes = 20;

// 5.2.6 "System Description Table Header"
struct TableHeader {
  Signature signature;    //  0
  le32 length;            //  4
  u8 revision;            //  8
  u8 checksum;            //  9  the whole table sums to 0
  u8 oem_id[6];           // 10
  u8 oem_table_id[8];     // 16
  le32 oem_revision;      // 24
  u8 creator_id[4];       // 28
  le32 creator_revision;  // 32
};
static_assert(base::WireType<TableHeader> && sizeof(TableHeader) == 36);

// 5.2.3.2 "Generic Address Structure"
struct GenericAddress {
  u8 space;        // 0  1: I/O port
  u8 bit_width;    // 1
  u8 bit_offset;   // 2
  u8 access_size;  // 3  1: byte
  le64 address;    // 4
};
static_assert(base::WireType<GenericAddress> && sizeof(GenericAddress) == 12);
inline constexpr u8 kSpaceSystemIo = 1;
inline constexpr u8 kAccessByte = 1;

// 5.2.9 "Fixed ACPI Description Table (FADT)". The fields left out belong to hardware that a
// hardware-reduced machine does not have; they are zero.
struct Fadt {
  TableHeader header;             //   0  "FACP"
  le32 firmware_control;          //  36  no FACS
  le32 dsdt;                      //  40  0: see x_dsdt
  u8 reserved_44;                 //  44
  u8 preferred_profile;           //  45  4: enterprise server
  le16 sci_interrupt;             //  46
  u8 unused_48[109 - 48];         //  48
  le16 boot_architecture;         // 109  BootArchitecture
  u8 reserved_111;                // 111
  le32 flags;                     // 112  FadtFlag
  GenericAddress reset_register;  // 116
  u8 reset_value;                 // 128
  le16 arm_boot_architecture;     // 129
  u8 minor_version;               // 131
  le64 x_firmware_control;        // 132
  le64 x_dsdt;                    // 140
  u8 unused_148[244 - 148];       // 148
  GenericAddress sleep_control;   // 244
  GenericAddress sleep_status;    // 256
  u8 hypervisor_vendor[8];        // 268
};
static_assert(base::WireType<Fadt> && sizeof(Fadt) == 276);
static_assert(offsetof(Fadt, reset_register) == 116 && offsetof(Fadt, x_dsdt) == 140);
static_assert(offsetof(Fadt, sleep_control) == 244);

// Table 5.10 "Fixed ACPI Description Table Boot Architecture Flags". Not set: LEGACY_DEVICES (0)
// and 8042 (1).
inline constexpr u16 kNoVga = 1 << 2;
inline constexpr u16 kNoPcieAspm = 1 << 4;
inline constexpr u16 kNoCmosRtc = 1 << 5;

// Table 5.9 "Fixed ACPI Description Table Fixed Feature Flags"
inline constexpr u32 kWbinvd = 1 << 0;
inline constexpr u32 kPowerButtonNotFixed = 1 << 4;  // PWR_BUTTON: a control method button, or none
inline constexpr u32 kSleepButtonNotFixed = 1 << 5;  // SLP_BUTTON
inline constexpr u32 kResetRegisterSupported = 1 << 10;
inline constexpr u32 kHeadless = 1 << 12;
inline constexpr u32 kHardwareReduced = 1 << 20;

// 5.2.12 "Multiple APIC Description Table (MADT)"
struct Madt {
  TableHeader header;       //  0  "APIC"
  le32 local_apic_address;  // 36
  le32 flags;               // 40  PCAT_COMPAT (bit 0): a PIC pair exists
};
static_assert(base::WireType<Madt> && sizeof(Madt) == 44);
inline constexpr u32 kPcatCompatible = 1 << 0;

// 5.2.12.2 "Processor Local APIC Structure"
struct MadtLocalApic {
  u8 type;           // 0  0
  u8 length;         // 1
  u8 processor_uid;  // 2
  u8 apic_id;        // 3
  le32 flags;        // 4  bit 0: enabled
};
static_assert(base::WireType<MadtLocalApic> && sizeof(MadtLocalApic) == 8);
inline constexpr u32 kLocalApicEnabled = 1 << 0;

// 5.2.12.3 "I/O APIC Structure"
struct MadtIoApic {
  u8 type;         // 0  1
  u8 length;       // 1
  u8 id;           // 2
  u8 reserved;     // 3
  le32 address;    // 4
  le32 first_gsi;  // 8
};
static_assert(base::WireType<MadtIoApic> && sizeof(MadtIoApic) == 12);

// 5.2.12.5 "Interrupt Source Override Structure"
struct MadtOverride {
  u8 type;     // 0  2
  u8 length;   // 1
  u8 bus;      // 2  0: ISA
  u8 source;   // 3
  le32 gsi;    // 4
  le16 flags;  // 8  Table 5.26 "MPS INTI Flags"
};
static_assert(base::WireType<MadtOverride> && sizeof(MadtOverride) == 10);
inline constexpr u16 kActiveHigh = 1 << 0;
inline constexpr u16 kEdgeTriggered = 1 << 2;

}  // namespace boot::acpi
