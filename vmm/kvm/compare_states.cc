#include "vmm/kvm/compare_states.h"

#include <algorithm>
#include <cstring>
#include <optional>

namespace kvm {
namespace {

// SDM volume 3, "Local APIC Register Address Map"
constexpr u32 kLapicPpr = 0xa0;            // follows from TPR, ISR and IRR, when it is next needed
constexpr u32 kLapicIrr = 0x200;           // eight registers of 32 bits, 16 bytes apart
constexpr u32 kLapicLvtTimer = 0x320;      // bits 7:0 the vector
constexpr u32 kLapicCurrentCount = 0x390;  // counts down

// The pins that the PIT drives: 0, and 2 where the firmware says so.
constexpr std::array<u32, 2> kPitPins{0, 2};

// IA32_TSC_ADJUST moves when the TSC is set; MPERF and APERF count.
constexpr std::array<u32, 3> kRunningMsrs{0x3b, 0xe7, 0xe8};

Error differs(std::string_view what) {
  return make_error(ErrorKind::corrupt, "{} differs after the revert", what);
}

// Timers run on while the guest stands still: one that expires after the restore leaves its vector
// in IRR, and nothing else.
void forget_request(StructBytes<kvm_lapic_state>& lapic, u8 vector) {
  const u32 at = kLapicIrr + vector / 32 * 16 + vector % 32 / 8;
  lapic[at] = static_cast<u8>(lapic[at] & ~(1u << vector % 8));
}

StructBytes<kvm_lapic_state> without_timers(StructBytes<kvm_lapic_state> lapic,
                                            const kvm_ioapic_state& ioapic) {
  std::fill_n(lapic.begin() + kLapicCurrentCount, 4, u8{0});
  std::fill_n(lapic.begin() + kLapicPpr, 4, u8{0});
  forget_request(lapic, lapic[kLapicLvtTimer]);
  for (const u32 pin : kPitPins) forget_request(lapic, ioapic.redirtbl[pin].fields.vector);
  return lapic;
}

bool is_requested(const StructBytes<kvm_lapic_state>& lapic, u8 vector) {
  return (lapic[kLapicIrr + vector / 32 * 16 + vector % 32 / 8] >> vector % 8 & 1) != 0;
}

// A device that wants attention raises its line once more when its state is restored. If the guest had
// accepted the interrupt at T, but not yet asked the device, that is a second request, which its driver
// answers with nothing to do. One that is missing stays a difference.
StructBytes<kvm_lapic_state> without_raised_again(StructBytes<kvm_lapic_state> found,
                                                  const StructBytes<kvm_lapic_state>& expected,
                                                  const kvm_ioapic_state& ioapic) {
  for (const auto& entry : ioapic.redirtbl) {
    const auto vector = static_cast<u8>(entry.fields.vector);
    const bool is_edge = entry.fields.mask == 0 && entry.fields.trig_mode == 0;
    if (is_edge && !is_requested(expected, vector)) forget_request(found, vector);
  }
  return found;
}

kvm_ioapic_state ioapic_of(const StructBytes<kvm_irqchip>& bytes) {
  return struct_of<kvm_irqchip>(bytes).chip.ioapic;
}

bool same_ioapic(kvm_ioapic_state a, kvm_ioapic_state b) {
  for (kvm_ioapic_state* state : {&a, &b}) {
    for (const u32 pin : kPitPins) {
      state->irr &= ~(1u << pin);
      state->redirtbl[pin].fields.remote_irr = 0;
    }
  }
  return std::memcmp(&a, &b, sizeof a) == 0;
}

enum class Pit : u8 { elsewhere, on_line_0 };

bool same_pic(const StructBytes<kvm_irqchip>& expected, const StructBytes<kvm_irqchip>& found,
              Pit pit) {
  auto chip_a = struct_of<kvm_irqchip>(expected).chip.pic;
  auto chip_b = struct_of<kvm_irqchip>(found).chip.pic;
  chip_b.irr = static_cast<u8>(chip_b.irr & chip_a.irr);  // as without_raised_again()
  if (pit == Pit::on_line_0) {
    for (kvm_pic_state* state : {&chip_a, &chip_b}) {
      state->irr = static_cast<u8>(state->irr & ~1u);
      state->last_irr = static_cast<u8>(state->last_irr & ~1u);
    }
  }
  return std::memcmp(&chip_a, &chip_b, sizeof chip_a) == 0;
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

// What KVM leaves in fields that no flag makes valid is of no meaning, and it does not keep it.
kvm_vcpu_events meaningful(const StructBytes<kvm_vcpu_events>& bytes) {
  auto events = struct_of<kvm_vcpu_events>(bytes);
  // Without payloads a pending exception is reported as injected too, and comes back as that.
  if ((events.flags & KVM_VCPUEVENT_VALID_PAYLOAD) == 0) events.exception.pending = 0;
  if (events.exception.injected == 0 && events.exception.pending == 0) events.exception = {};
  if (events.exception.has_error_code == 0) events.exception.error_code = 0;
  if (events.exception_has_payload == 0) events.exception_payload = 0;
  if (events.interrupt.injected == 0) {
    events.interrupt.nr = 0;
    events.interrupt.soft = 0;
  }
  events.sipi_vector = 0;
  return events;
}

bool same_events(const StructBytes<kvm_vcpu_events>& a, const StructBytes<kvm_vcpu_events>& b) {
  const kvm_vcpu_events left = meaningful(a);
  const kvm_vcpu_events right = meaningful(b);
  return std::memcmp(&left, &right, sizeof left) == 0;
}

// SDM volume 1, 13.4.2 "XSAVE Header" and 13.6 "Processor Tracking of XSAVE-Managed State": XSTATE_BV
// may say of a component with its initial value either that it is in use or that it is not, and from
// one run to the next the processor changes its mind. KVM fills in the value in both cases, so the
// bytes tell all.
std::optional<std::size_t> xsave_difference(const std::vector<u8>& a, const std::vector<u8>& b) {
  constexpr std::size_t kXstateBv = 512;
  if (a.size() != b.size()) return std::min(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    const bool in_xstate_bv = i >= kXstateBv && i < kXstateBv + sizeof(u64);
    if (a[i] != b[i] && !in_xstate_bv) return i;
  }
  return std::nullopt;
}

Result<void> compare_vcpus(u32 index, const VcpuState& a, const VcpuState& b,
                           const kvm_ioapic_state& ioapic) {
  const auto what = [&](std::string_view group) {
    return differs(fmt::format("vCPU {}: {}", index, group));
  };
  if (a.mp_state != b.mp_state) return what("the run state");
  if (a.registers != b.registers) return what("a general register");
  if (a.special_registers != b.special_registers) return what("a control or segment register");
  if (a.extended_control_registers != b.extended_control_registers) return what("XCR0");
  if (const auto offset = xsave_difference(a.xsave, b.xsave)) {
    return what(fmt::format("the floating-point and vector state at byte {}", *offset));
  }
  if (a.debug_registers != b.debug_registers) return what("a debug register");
  if (without_timers(a.lapic, ioapic) !=
      without_timers(without_raised_again(b.lapic, a.lapic, ioapic), ioapic)) {
    return what("the LAPIC");
  }
  if (!same_events(a.events, b.events)) return what("a pending event");
  u32 msr = 0;
  if (!same_msrs(a.msrs, b.msrs, msr)) return what(fmt::format("MSR {:#x}", msr));
  if ((a.tsc_deadline == 0) != (b.tsc_deadline == 0)) return what("the TSC deadline timer");
  return {};
}

}  // namespace

Result<void> compare_states(const ProcessorsState& expected, const ProcessorsState& found) {
  if (expected.vcpus.size() != found.vcpus.size()) return differs("the number of vCPUs");
  for (u32 i = 0; i < expected.vcpus.size(); ++i) {
    TRY(compare_vcpus(i, expected.vcpus[i], found.vcpus[i], ioapic_of(expected.ioapic)));
  }
  if (!same_pic(expected.pic_master, found.pic_master, Pit::on_line_0)) {
    return differs("the master PIC");
  }
  if (!same_pic(expected.pic_slave, found.pic_slave, Pit::elsewhere)) {
    return differs("the slave PIC");
  }
  if (!same_ioapic(ioapic_of(expected.ioapic), ioapic_of(found.ioapic)))
    return differs("the IOAPIC");
  if (without_load_times(expected.pit) != without_load_times(found.pit)) return differs("the PIT");
  return {};
}

std::vector<Gpa> clock_pages(const ProcessorsState& state) {
  std::vector<Gpa> pages;
  for (const VcpuState& vcpu : state.vcpus) {
    for (const MsrValue& msr : vcpu.msrs) {
      const bool is_clock =
          msr.index == MSR_KVM_SYSTEM_TIME || msr.index == MSR_KVM_SYSTEM_TIME_NEW;
      // Bit 0: enabled. The structure is 4-byte aligned and may not cross a page.
      if (is_clock && (msr.value & 1) != 0) pages.push_back(Gpa{msr.value & ~u64{3}});
    }
  }
  return pages;
}

}  // namespace kvm
