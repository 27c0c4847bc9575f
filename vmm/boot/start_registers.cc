#include "vmm/boot/start_registers.h"

#include <array>

#include "vmm/base/check.h"
#include "vmm/boot/layout.h"

namespace boot {
namespace {

// SDM volume 3, "Control Registers" and "Extended Feature Enable Register".
constexpr u64 kCr0Pe = 1 << 0;
constexpr u64 kCr0Et = 1 << 4;  // reads as 1 on every processor of today
constexpr u64 kCr0Pg = u64{1} << 31;
constexpr u64 kCr4Pae = 1 << 5;
constexpr u64 kEferLme = 1 << 8;
constexpr u64 kEferLma = 1 << 10;
constexpr u64 kRflagsReserved = 1 << 1;  // always 1; IF, TF and VM are clear, as both protocols ask

// SDM volume 3, "Code- and Data-Segment Descriptor Types" and "System Descriptor Types".
constexpr u8 kTypeCode = 11;  // execute, read, accessed
constexpr u8 kTypeData = 3;   // read, write, accessed
constexpr u8 kTypeTask = 11;  // 32- or 64-bit TSS, busy: what VM entry asks of TR

// __BOOT_CS and __BOOT_DS of Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol". PVH
// leaves the selectors open.
constexpr u16 kCodeSelector = 0x10;
constexpr u16 kDataSelector = 0x18;
constexpr u16 kTaskSelector = 0x20;
constexpr u64 kGdtEntryCount = 6;  // null, unused, code, data, task (two entries in long mode)

constexpr u32 kFlatLimit = 0xffffffff;
constexpr u32 kTaskLimit = 0x67;  // the smallest TSS

// SDM volume 3, "Paging": entries of all levels.
constexpr u64 kPresent = 1 << 0;
constexpr u64 kWritable = 1 << 1;
constexpr u64 kLargePage = 1 << 7;
constexpr u64 kLargePageBytes = 2 * base::kMiB;
constexpr u64 kEntriesPerTable = 512;

u64 descriptor(const Segment& segment) {
  const u64 limit = segment.granular_4k ? segment.limit >> 12 : segment.limit;
  const u64 access = segment.type | u64{segment.code_or_data} << 4 | kPresent << 7;
  const u64 flags =
      u64{segment.long_mode} << 1 | u64{segment.operand_32} << 2 | u64{segment.granular_4k} << 3;
  return (limit & 0xffff) | (segment.base & 0xffffff) << 16 | access << 40 |
         (limit >> 16 & 0xf) << 48 | flags << 52 | (segment.base >> 24 & 0xff) << 56;
}

void write_gdt(memory::GuestMemory& memory, StartRegisters& registers) {
  std::array<le64, kGdtEntryCount> table{};
  table.at(kCodeSelector / 8) = descriptor(registers.code);
  table.at(kDataSelector / 8) = descriptor(registers.data);
  table.at(kTaskSelector / 8) = descriptor(registers.task);
  CHECK(memory.write(Gpa{kGdtAddress}, table));
  registers.gdt_base = kGdtAddress;
  registers.gdt_limit = sizeof table - 1;
}

// Maps [0, 4 GiB) 1:1 with pages of 2 MiB, which every processor with long mode has; pages of 1 GiB
// are a feature that a guest may not be shown.
void write_page_tables(memory::GuestMemory& memory) {
  constexpr u64 kDirectories = 4;
  constexpr u64 kDirectoryPointers = kPageTablesAddress + base::kPageBytes;
  constexpr u64 kFirstDirectory = kDirectoryPointers + base::kPageBytes;
  std::array<le64, (2 + kDirectories) * kEntriesPerTable> tables{};
  static_assert(sizeof tables == kPageTablesBytes);

  tables[0] = kDirectoryPointers | kPresent | kWritable;
  for (u64 i = 0; i < kDirectories; ++i) {
    tables[kEntriesPerTable + i] = (kFirstDirectory + i * base::kPageBytes) | kPresent | kWritable;
  }
  for (u64 i = 0; i < kDirectories * kEntriesPerTable; ++i) {
    tables[2 * kEntriesPerTable + i] = i * kLargePageBytes | kPresent | kWritable | kLargePage;
  }
  CHECK(memory.write(Gpa{kPageTablesAddress}, tables));
}

StartRegisters flat_registers(u64 entry) {
  StartRegisters registers;
  registers.rip = entry;
  registers.rsp = kStackTop;
  registers.rflags = kRflagsReserved;
  registers.cr0 = kCr0Pe | kCr0Et;
  registers.code = {.limit = kFlatLimit,
                    .selector = kCodeSelector,
                    .type = kTypeCode,
                    .code_or_data = true,
                    .granular_4k = true};
  registers.data = {.limit = kFlatLimit,
                    .selector = kDataSelector,
                    .type = kTypeData,
                    .code_or_data = true,
                    .operand_32 = true,
                    .granular_4k = true};
  registers.task = {.limit = kTaskLimit, .selector = kTaskSelector, .type = kTypeTask};
  return registers;
}

}  // namespace

StartRegisters prepare_long_mode(memory::GuestMemory& memory, u64 entry) {
  StartRegisters registers = flat_registers(entry);
  registers.mode = StartMode::long_mode_64;
  registers.rsi = kZeroPageAddress;
  registers.code.long_mode = true;
  registers.cr0 |= kCr0Pg;
  registers.cr3 = kPageTablesAddress;
  registers.cr4 = kCr4Pae;
  registers.efer = kEferLme | kEferLma;
  write_gdt(memory, registers);
  write_page_tables(memory);
  return registers;
}

// Xen, docs/misc/pvh.pandoc, "Introduction": paging off, flat 32-bit segments, a TSS of limit 0x67.
StartRegisters prepare_protected_mode(memory::GuestMemory& memory, u32 entry) {
  StartRegisters registers = flat_registers(entry);
  registers.mode = StartMode::protected_mode_32;
  registers.rbx = kHvmStartInfoAddress;
  registers.code.operand_32 = true;
  write_gdt(memory, registers);
  return registers;
}

}  // namespace boot
