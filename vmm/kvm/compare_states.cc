#include "vmm/kvm/compare_states.h"

#include <algorithm>
#include <cstring>

namespace kvm {
namespace {

constexpr u32 kLapicCurrentCount = 0x390;  // SDM volume 3, "APIC Timer": counts down

// IA32_TSC_ADJUST moves when the TSC is set; MPERF and APERF count.
constexpr std::array<u32, 3> kRunningMsrs{0x3b, 0xe7, 0xe8};

Error differs(std::string_view what) {
  return make_error(ErrorKind::corrupt, "{} differs after the revert", what);
}

StructBytes<kvm_lapic_state> without_current_count(StructBytes<kvm_lapic_state> lapic) {
  std::fill_n(lapic.begin() + kLapicCurrentCount, 4, u8{0});
  return lapic;
}

StructBytes<kvm_pit_state2> without_load_times(const StructBytes<kvm_pit_state2>& bytes) {
  auto pit = struct_of<kvm_pit_state2>(bytes);
  for (kvm_pit_channel_state& channel : pit.channels) channel.count_load_time = 0;
  StructBytes<kvm_pit_state2> result;
  std::memcpy(result.data(), &pit, sizeof pit);
  return result;
}

bool same_msrs(const std::vector<MsrValue>& a, const std::vector<MsrValue>& b, u32& different) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    different = a[i].index;
    if (a[i].index != b[i].index || std::ranges::count(kRunningMsrs, a[i].index) == 0) return false;
  }
  return true;
}

Result<void> compare_vcpus(u32 index, const VcpuState& a, const VcpuState& b) {
  const auto what = [&](std::string_view group) {
    return differs(fmt::format("vCPU {}: {}", index, group));
  };
  if (a.mp_state != b.mp_state) return what("the run state");
  if (a.registers != b.registers) return what("a general register");
  if (a.special_registers != b.special_registers) return what("a control or segment register");
  if (a.extended_control_registers != b.extended_control_registers) return what("XCR0");
  if (a.xsave != b.xsave) return what("the floating-point and vector state");
  if (a.debug_registers != b.debug_registers) return what("a debug register");
  if (without_current_count(a.lapic) != without_current_count(b.lapic)) return what("the LAPIC");
  if (a.events != b.events) return what("a pending event");
  u32 msr = 0;
  if (!same_msrs(a.msrs, b.msrs, msr)) return what(fmt::format("MSR {:#x}", msr));
  if ((a.tsc_deadline == 0) != (b.tsc_deadline == 0)) return what("the TSC deadline timer");
  return {};
}

}  // namespace

Result<void> compare_states(const ProcessorsState& expected, const ProcessorsState& found) {
  if (expected.vcpus.size() != found.vcpus.size()) return differs("the number of vCPUs");
  for (u32 i = 0; i < expected.vcpus.size(); ++i) {
    TRY(compare_vcpus(i, expected.vcpus[i], found.vcpus[i]));
  }
  if (expected.pic_master != found.pic_master) return differs("the master PIC");
  if (expected.pic_slave != found.pic_slave) return differs("the slave PIC");
  if (expected.ioapic != found.ioapic) return differs("the IOAPIC");
  if (without_load_times(expected.pit) != without_load_times(found.pit)) return differs("the PIT");
  return {};
}

}  // namespace kvm
