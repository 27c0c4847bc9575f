#include "vmm/boot/start_registers.h"

#include <gtest/gtest.h>

#include "tests/vmm/boot/support/kernel_files.h"
#include "vmm/boot/layout.h"

namespace {

constexpr u64 kAddressMask = 0x000ffffffffff000;

// Walks the page tables as a processor does.
u64 translate(const memory::GuestMemory& memory, u64 cr3, u64 address) {
  u64 table = cr3;
  for (int level = 3; level > 0; --level) {
    const u64 index = address >> (12 + 9 * level) & 511;
    const u64 entry = *memory.read<le64>(Gpa{table + index * 8});
    EXPECT_EQ(entry & 3, 3u) << "not present and writable at level " << level;
    if ((entry & 0x80) != 0) {
      const u64 offset_mask = (u64{1} << (12 + 9 * level)) - 1;
      return (entry & kAddressMask & ~offset_mask) | (address & offset_mask);
    }
    table = entry & kAddressMask;
  }
  return ~u64{0};
}

TEST(StartRegisters, LongModeMapsFourGibibytesOneToOne) {
  const auto memory = boot_test::make_memory();
  const boot::StartRegisters registers = boot::prepare_long_mode(*memory, 0x1000200);
  for (const u64 address : {u64{0}, u64{0x7000}, u64{0x1000200}, u64{0x3fffffff}, u64{0x40000000},
                            u64{0xd0000000}, u64{0xfee00000}, u64{0xffffffff}}) {
    EXPECT_EQ(translate(*memory, registers.cr3, address), address);
  }
}

// Linux 6.1, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol".
TEST(StartRegisters, LongModeIsWhatTheBootProtocolAsksFor) {
  const auto memory = boot_test::make_memory();
  const boot::StartRegisters registers = boot::prepare_long_mode(*memory, 0x1000200);
  EXPECT_EQ(registers.cr0, 0x80000011u);
  EXPECT_EQ(registers.cr4, 0x20u);
  EXPECT_EQ(registers.efer, 0x500u);
  EXPECT_EQ(registers.rflags, 2u);
  EXPECT_EQ(registers.code.selector, 0x10);
  EXPECT_EQ(registers.data.selector, 0x18);
  EXPECT_EQ(registers.gdt_limit, 47);
  EXPECT_EQ(memory->read<le64>(Gpa{registers.gdt_base + 0x10}), 0x00af9b000000ffffu);
  EXPECT_EQ(memory->read<le64>(Gpa{registers.gdt_base + 0x18}), 0x00cf93000000ffffu);
  EXPECT_EQ(memory->read<le64>(Gpa{registers.gdt_base + 0x20}), 0x00008b0000000067u);
}

// Xen, docs/misc/pvh.pandoc.
TEST(StartRegisters, ProtectedModeIsWhatPvhAsksFor) {
  const auto memory = boot_test::make_memory();
  const boot::StartRegisters registers = boot::prepare_protected_mode(*memory, 0x100000);
  EXPECT_EQ(registers.cr0, 0x11u);
  EXPECT_EQ(registers.cr3, 0u);
  EXPECT_EQ(registers.cr4, 0u);
  EXPECT_EQ(registers.efer, 0u);
  EXPECT_EQ(registers.rbx, boot::kHvmStartInfoAddress);
  EXPECT_FALSE(registers.code.long_mode);
  EXPECT_TRUE(registers.code.operand_32);
  EXPECT_EQ(registers.code.limit, 0xffffffffu);
  EXPECT_EQ(registers.task.limit, 0x67u);
  EXPECT_EQ(memory->read<le64>(Gpa{registers.gdt_base + 0x10}), 0x00cf9b000000ffffu);
}

TEST(StartRegisters, SmallestMachineHasRoom) {
  const auto memory = boot_test::make_memory(base::kMiB);
  boot::prepare_long_mode(*memory, 0x100000);
}

}  // namespace
