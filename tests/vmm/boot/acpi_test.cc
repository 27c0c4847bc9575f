#include "vmm/boot/acpi.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>

#include "tests/vmm/boot/support/kernel_files.h"
#include "vmm/boot/acpi_tables.h"

namespace {

using boot::acpi::TableHeader;
using boot_test::Bytes;

u8 sum(const Bytes& bytes) {
  u8 total = 0;
  for (const u8 byte : bytes) total = static_cast<u8>(total + byte);
  return total;
}

template <class T>
T part(const Bytes& bytes, u64 offset) {
  T value;
  EXPECT_LE(offset + sizeof value, bytes.size());
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

// One table, found as a guest finds it.
Bytes table_at(const memory::GuestMemory& memory, u64 address) {
  const auto header = *memory.read<TableHeader>(Gpa{address});
  EXPECT_GE(address, boot::kAcpiTablesStart);
  EXPECT_LE(address + header.length, boot::kAcpiTablesEnd);
  return boot_test::read_ram(memory, address, header.length);
}

std::string name_of(const Bytes& table) { return {table.begin(), table.begin() + 4}; }

// All tables by way of RSDP, XSDT and FADT: XSDT, its entries in order, DSDT.
std::vector<Bytes> walk(const memory::GuestMemory& memory) {
  const auto rsdp = *memory.read<boot::acpi::Rsdp>(Gpa{boot::kAcpiTablesStart});
  std::vector<Bytes> tables{table_at(memory, rsdp.xsdt_address)};
  const Bytes xsdt = tables[0];
  for (u64 at = sizeof(TableHeader); at < xsdt.size(); at += 8) {
    tables.push_back(table_at(memory, part<le64>(xsdt, at)));
  }
  tables.push_back(table_at(memory, part<boot::acpi::Fadt>(tables[1], 0).x_dsdt));
  return tables;
}

std::unique_ptr<memory::GuestMemory> build(u32 vcpu_count, u16 slots = 0) {
  auto memory = boot_test::make_memory(2 * base::kMiB);
  EXPECT_TRUE(boot::acpi::build_tables(*memory, vcpu_count, slots));
  return memory;
}

bool contains(const Bytes& bytes, const Bytes& pattern) {
  return std::search(bytes.begin(), bytes.end(), pattern.begin(), pattern.end()) != bytes.end();
}

Bytes little_endian(u32 value) {
  return {static_cast<u8>(value), static_cast<u8>(value >> 8), static_cast<u8>(value >> 16),
          static_cast<u8>(value >> 24)};
}

TEST(Acpi, RsdpIsWhereGuestsLookAndBothItsSumsAreZero) {
  const auto memory = build(1);
  EXPECT_EQ(boot::kAcpiTablesStart % 16, 0u);
  const Bytes bytes = boot_test::read_ram(*memory, boot::kAcpiTablesStart, 36);
  EXPECT_EQ(std::string(bytes.begin(), bytes.begin() + 8), "RSD PTR ");
  EXPECT_EQ(sum(Bytes(bytes.begin(), bytes.begin() + 20)), 0);
  EXPECT_EQ(sum(bytes), 0);
}

TEST(Acpi, EveryTableIsReachableAndSumsToZero) {
  for (const u32 vcpus : {1u, 2u, 8u, 64u}) {
    const auto memory = build(vcpus);
    std::vector<std::string> names;
    for (const Bytes& table : walk(*memory)) {
      names.push_back(name_of(table));
      EXPECT_EQ(sum(table), 0) << names.back();
    }
    EXPECT_THAT(names, testing::ElementsAre("XSDT", "FACP", "APIC", "DSDT"));
  }
}

TEST(Acpi, MadtListsEveryVcpuOnceAndTheIoApic) {
  for (const u32 vcpus : {1u, 8u, 64u}) {
    const Bytes madt = walk(*build(vcpus))[2];
    u32 processors = 0;
    bool io_apic = false;
    bool event_override = false;
    for (u64 at = sizeof(boot::acpi::Madt); at < madt.size(); at += madt[at + 1]) {
      ASSERT_GE(madt[at + 1], 2);
      if (madt[at] == 0) {
        EXPECT_EQ(madt[at + 3], processors++);
        EXPECT_EQ(madt[at + 4], 1);
      } else if (madt[at] == 1) {
        const auto entry = part<boot::acpi::MadtIoApic>(madt, at);
        io_apic = entry.address == boot::kIoApicAddress && entry.first_gsi == 0;
      } else if (madt[at] == 2) {
        const auto entry = part<boot::acpi::MadtOverride>(madt, at);
        event_override = entry.source == 9 && entry.gsi == 9 && entry.flags == 5;
      }
    }
    EXPECT_EQ(processors, vcpus);
    EXPECT_TRUE(io_apic && event_override);
  }
}

TEST(Acpi, VcpuCountOutsideTheLimitIsRefused) {
  const auto memory = boot_test::make_memory(2 * base::kMiB);
  EXPECT_FALSE(boot::acpi::build_tables(*memory, 0, 0));
  EXPECT_FALSE(boot::acpi::build_tables(*memory, 65, 0));
}

TEST(Acpi, FadtOffersResetAndPowerOffAndNoLegacyHardware) {
  const auto fadt = part<boot::acpi::Fadt>(walk(*build(1))[1], 0);
  EXPECT_EQ(fadt.reset_register.address, boot::kResetPort);
  EXPECT_EQ(fadt.reset_value, boot::kResetValue);
  EXPECT_EQ(fadt.sleep_control.address, boot::kSleepControlPort);
  EXPECT_EQ(fadt.sleep_status.address, boot::kSleepStatusPort);
  EXPECT_EQ(fadt.flags >> 20 & 1, 1u);  // HW_REDUCED_ACPI
  EXPECT_EQ(fadt.flags >> 10 & 1, 1u);  // RESET_REG_SUP
  EXPECT_EQ(fadt.boot_architecture & 0x27, 0x24);
}

// dsdt.asl repeats the numbers of layout.h; this is what keeps them equal.
TEST(Acpi, DsdtAgreesWithTheLayout) {
  const std::span<const u8> aml = boot::acpi::compiled_dsdt();
  const Bytes dsdt(aml.begin(), aml.end());
  for (u32 slot = 0; slot < boot::kVirtioSlotCount; ++slot) {
    // ACPI 6.4, 6.4.3.4 "32-Bit Fixed Memory Range Descriptor", 6.4.3.6 "Extended Interrupt
    // Descriptor": flags 0x03 is consumer, edge, active high, exclusive.
    Bytes resources{0x86, 0x09, 0x00, 0x01};
    for (const u32 value : {static_cast<u32>(boot::virtio_slot_address(slot)),
                            static_cast<u32>(boot::kVirtioSlotBytes)}) {
      const Bytes bytes = little_endian(value);
      resources.insert(resources.end(), bytes.begin(), bytes.end());
    }
    resources.insert(resources.end(), {0x89, 0x06, 0x00, 0x03, 0x01});
    const Bytes gsi = little_endian(boot::kVirtioSlotGsi.at(slot));
    resources.insert(resources.end(), gsi.begin(), gsi.end());
    EXPECT_TRUE(contains(dsdt, resources)) << "slot " << slot;
  }
  Bytes facts{'F', 'A', 'C', 'T', 0x00, 0x0c};
  for (const u8 byte : little_endian(boot::kMachineFactsAddress)) facts.push_back(byte);
  EXPECT_TRUE(contains(dsdt, facts));
  EXPECT_TRUE(contains(
      dsdt, {'E', 'V', 'T', 'R', 0x01, 0x0b, boot::kEventPort & 0xff, boot::kEventPort >> 8}));
  Bytes generation{'A', 'D', 'D', 'R', 0x12, 0x08, 0x02, 0x0c};
  for (const u8 byte : little_endian(boot::kGenerationIdAddress)) generation.push_back(byte);
  EXPECT_TRUE(contains(dsdt, generation));
  EXPECT_TRUE(
      contains(dsdt, {'_', 'S', '5', '_', 0x12, 0x07, 0x04, 0x0a, boot::kSleepTypeSoftOff}));
  // IO(Decode16, 0x3f8, 0x3f8, 1, 8)
  EXPECT_TRUE(contains(dsdt, {0x47, 0x01, 0xf8, 0x03, 0xf8, 0x03, 0x01, 0x08}));
}

TEST(Acpi, DsdtIsTheSameOnEveryMachine) {
  EXPECT_EQ(walk(*build(1, 0)).back(), walk(*build(64, 0xffff)).back());
}

TEST(Acpi, MachineFactsTellWhichSlotsAreInUse) {
  const auto memory = build(2, 0x8005);
  EXPECT_EQ(memory->read<le32>(Gpa{boot::kMachineFactsAddress}), 0x8005u);
}

TEST(Acpi, GenerationIdIsRandom) {
  const auto first = build(1);
  const auto second = build(1);
  const Bytes a = boot_test::read_ram(*first, boot::kGenerationIdAddress, 16);
  EXPECT_NE(a, Bytes(16));
  EXPECT_NE(a, boot_test::read_ram(*second, boot::kGenerationIdAddress, 16));
}

// A second reader of our tables: the compiler that wrote the DSDT reads all of them back.
TEST(Acpi, DisassemblerAcceptsEveryTable) {
  if (::system("command -v iasl >/dev/null") != 0) GTEST_SKIP() << "iasl is not installed";
  char directory[] = "/tmp/quicksave-acpi-XXXXXX";
  ASSERT_NE(::mkdtemp(directory), nullptr);
  for (const Bytes& table : walk(*build(3, 0x3))) {
    const std::string base = std::string(directory) + "/" + name_of(table);
    const base::Fd fd = std::move(*base::open_file(base + ".dat", O_CREAT | O_WRONLY));
    ASSERT_TRUE(base::write_all(fd, table));
    const std::string command = "iasl -d -p " + base + " " + base + ".dat >" + base + ".log 2>&1";
    EXPECT_EQ(::system(command.c_str()), 0);
    const std::string log = *base::read_whole_file(base + ".log", base::kMiB);
    const std::string text = *base::read_whole_file(base + ".dsl", base::kMiB);
    EXPECT_THAT(log, testing::Not(testing::HasSubstr("rror")));
    EXPECT_THAT(text, testing::Not(testing::ContainsRegex("Invalid|Incorrect|Unknown")));
  }
  EXPECT_EQ(::system((std::string("rm -r ") + directory).c_str()), 0);
}

}  // namespace
