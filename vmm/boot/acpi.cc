#include "vmm/boot/acpi.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"
#include "vmm/boot/acpi_tables.h"
#include "vmm/boot/dsdt_aml.h"  // made from dsdt.asl, see dsdt.cmake
#include "vmm/boot/random_bytes.h"

namespace boot::acpi {
namespace {

constexpr u64 kTableAlignment = 16;

template <std::size_t N>
void put_text(u8 (&field)[N], std::string_view text) {
  for (std::size_t i = 0; i < N; ++i) field[i] = i < text.size() ? static_cast<u8>(text[i]) : ' ';
}

// The byte that makes the sum 0. REQUIRES: the place where it will stand holds 0.
u8 checksum(std::span<const u8> bytes) {
  u8 sum = 0;
  for (const u8 byte : bytes) sum = static_cast<u8>(sum + byte);
  return static_cast<u8>(-sum);
}

// The tables as one block of bytes that will lie at kAcpiTablesStart: one write touches the fewest
// pages of guest RAM.
class TableBlock final {
 public:
  // Room for the RSDP, which comes first in memory and is known last.
  TableBlock() : bytes_(sizeof(Rsdp)) {}

  // Starts a table and returns its guest-physical address.
  u64 begin(std::span<const u8> bytes) {
    bytes_.resize(base::align_up(bytes_.size(), kTableAlignment));
    start_ = bytes_.size();
    append(bytes);
    return kAcpiTablesStart + start_;
  }
  template <base::WireType T>
  u64 begin(const T& table) {
    return begin(bytes_of(table));
  }

  void append(std::span<const u8> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  template <base::WireType T>
  void append(const T& entry) {
    append(bytes_of(entry));
  }

  // Completes the header of the table that was begun. The creator is ours in the DSDT too, so that
  // no byte of it depends on the version of the compiler.
  void finish() {
    const std::span<u8> table = std::span(bytes_).subspan(start_);
    TableHeader header;
    std::memcpy(&header, table.data(), sizeof header);
    header.length = static_cast<u32>(table.size());
    header.checksum = 0;
    put_text(header.oem_id, "QSAVE");
    put_text(header.oem_table_id, "QUICKSAV");
    header.oem_revision = 1;
    put_text(header.creator_id, "QSAV");
    header.creator_revision = 1;
    std::memcpy(table.data(), &header, sizeof header);
    header.checksum = checksum(table);
    std::memcpy(table.data(), &header, sizeof header);
  }

  std::span<const u8> with_rsdp(u64 xsdt_address) {
    Rsdp rsdp{};
    put_text(rsdp.signature, "RSD PTR ");
    put_text(rsdp.oem_id, "QSAVE");
    rsdp.revision = 2;
    rsdp.length = sizeof rsdp;
    rsdp.xsdt_address = xsdt_address;
    rsdp.checksum = checksum(bytes_of(rsdp).first(kRsdpFirstPartBytes));
    rsdp.extended_checksum = checksum(bytes_of(rsdp));
    std::memcpy(bytes_.data(), &rsdp, sizeof rsdp);
    return bytes_;
  }

 private:
  template <base::WireType T>
  static std::span<const u8> bytes_of(const T& value) {
    return {reinterpret_cast<const u8*>(&value), sizeof value};
  }

  std::vector<u8> bytes_;
  u64 start_ = 0;
};

u64 add_dsdt(TableBlock& block) {
  const u64 address = block.begin(compiled_dsdt());
  block.finish();
  return address;
}

u64 add_fadt(TableBlock& block, u64 dsdt_address) {
  constexpr auto byte_port = [](u16 port) {
    return GenericAddress{kSpaceSystemIo, 8, 0, kAccessByte, port};
  };
  Fadt fadt{};
  fadt.header.signature = signature("FACP");
  fadt.header.revision = 6;
  fadt.minor_version = 4;
  fadt.preferred_profile = 4;
  fadt.sci_interrupt = static_cast<u16>(kEventGsi);
  fadt.boot_architecture = kNoVga | kNoPcieAspm | kNoCmosRtc;
  fadt.flags = kWbinvd | kPowerButtonNotFixed | kSleepButtonNotFixed | kResetRegisterSupported |
               kHeadless | kHardwareReduced;
  fadt.reset_register = byte_port(kResetPort);
  fadt.reset_value = kResetValue;
  fadt.x_dsdt = dsdt_address;
  fadt.sleep_control = byte_port(kSleepControlPort);
  fadt.sleep_status = byte_port(kSleepStatusPort);
  put_text(fadt.hypervisor_vendor, "QUICKSAV");
  const u64 address = block.begin(fadt);
  block.finish();
  return address;
}

u64 add_madt(TableBlock& block, u32 vcpu_count) {
  Madt madt{};
  madt.header.signature = signature("APIC");
  madt.header.revision = 5;
  madt.local_apic_address = static_cast<u32>(kLocalApicAddress);
  madt.flags = kPcatCompatible;
  const u64 address = block.begin(madt);
  for (u32 i = 0; i < vcpu_count; ++i) {
    const u8 id = static_cast<u8>(i);
    block.append(MadtLocalApic{0, sizeof(MadtLocalApic), id, id, kLocalApicEnabled});
  }
  block.append(MadtIoApic{1, sizeof(MadtIoApic), 0, 0, static_cast<u32>(kIoApicAddress), 0});
  // Linux takes the SCI for level-triggered, active low unless told otherwise, hardware-reduced or
  // not (arch/x86/kernel/acpi/boot.c, acpi_sci_ioapic_setup); ours is the event interrupt. All
  // other ISA interrupts are where and as ISA has them: the PIT too, as KVM's default routing
  // connects it.
  block.append(MadtOverride{2, sizeof(MadtOverride), 0, static_cast<u8>(kEventGsi), kEventGsi,
                            kActiveHigh | kEdgeTriggered});
  block.finish();
  return address;
}

u64 add_xsdt(TableBlock& block, std::span<const u64> tables) {
  TableHeader header{};
  header.signature = signature("XSDT");
  header.revision = 1;
  const u64 address = block.begin(header);
  for (const u64 table : tables) block.append(le64(table));
  block.finish();
  return address;
}

}  // namespace

Result<void> build_tables(memory::GuestMemory& memory, u32 vcpu_count, u16 virtio_slots_present) {
  if (vcpu_count == 0 || vcpu_count > kMaximumVcpuCount) {
    return make_error(ErrorKind::usage, "{} CPUs are outside 1 to {}", vcpu_count,
                      kMaximumVcpuCount);
  }
  TableBlock block;
  const u64 dsdt = add_dsdt(block);
  const u64 tables[] = {add_fadt(block, dsdt), add_madt(block, vcpu_count)};
  const u64 xsdt = add_xsdt(block, tables);
  const std::span<const u8> bytes = block.with_rsdp(xsdt);
  CHECK(bytes.size() <= kAcpiTablesEnd - kAcpiTablesStart);
  CHECK(memory.write(Gpa{kAcpiTablesStart}, bytes));

  const MachineFacts facts{.virtio_slots_present = virtio_slots_present};
  CHECK(memory.write(Gpa{kMachineFactsAddress}, facts));

  std::array<u8, 16> id{};
  TRY(fill_random(id));
  CHECK(memory.write(Gpa{kGenerationIdAddress}, id));
  return {};
}

std::span<const u8> compiled_dsdt() { return kDsdtAml; }

}  // namespace boot::acpi
