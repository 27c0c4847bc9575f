#include "vmm/kvm/clock.h"

#include <time.h>
#include <x86intrin.h>

#include <algorithm>

#include "vmm/kvm/ioctl.h"

namespace kvm {

namespace {

// Ten milliseconds: more than an NTP step on a healthy host, less than anything that a change of
// host or a reboot would show.
constexpr u64 kSameHostToleranceNs = 10'000'000;

u64 ticks(u64 ns, u64 khz) {
  return static_cast<u64>(static_cast<unsigned __int128>(ns) * khz / 1'000'000);
}

u64 distance(u64 a, u64 b) { return a > b ? a - b : b - a; }

}  // namespace

u64 realtime_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<u64>(now.tv_sec) * 1'000'000'000 + static_cast<u64>(now.tv_nsec);
}

Result<ClockReading> read_clock(const base::Fd& vm) {
  kvm_clock_data clock{};
  TRY(KVM_CALL(vm, KVM_GET_CLOCK, &clock));
  ClockReading reading;
  reading.kvmclock_ns = clock.clock;
  reading.realtime_ns = (clock.flags & KVM_CLOCK_REALTIME) != 0 ? clock.realtime : realtime_ns();
  reading.tsc = (clock.flags & KVM_CLOCK_HOST_TSC) != 0 ? clock.host_tsc : __rdtsc();
  return reading;
}

// Without flags: with them KVM would add the real time that went by in its own way, which is there
// since Linux 5.16 only. A real time before T (the host's clock was set back) adds nothing: the
// guest's clock never goes back behind T.
Result<void> set_kvmclock(const base::Fd& vm, const ProcessorsState& state, ClockPolicy policy) {
  kvm_clock_data clock{};
  clock.clock = state.kvmclock_ns;
  if (policy == ClockPolicy::realtime) {
    const u64 now = realtime_ns();
    if (now > state.host_realtime_ns) clock.clock += now - state.host_realtime_ns;
  }
  TRY(KVM_CALL(vm, KVM_SET_CLOCK, &clock));
  return {};
}

// A step so large that KVM cannot take it for an attempt to synchronise with the other vCPUs, which
// it would round away (differences below a second).
Result<bool> tsc_can_be_set(VcpuStateTransfer& vcpu) {
  constexpr u64 kStep = u64{1} << 44;  // hours at any clock rate
  const std::optional<u64> offset = vcpu.tsc_offset();
  if (!offset) return false;
  const u64 before = TRY(vcpu.read_tsc());
  if (!vcpu.set_tsc_offset(*offset + kStep)) return false;
  const u64 after = TRY(vcpu.read_tsc());
  TRY(vcpu.set_tsc_offset(*offset));
  return after - before >= kStep;
}

// On the host of T, the TSC itself tells how much time went by, and exactly: then a guest whose TSC
// was not touched keeps its offset. Elsewhere (or after a reboot) real time has to do.
TscPlan plan_tsc(const ProcessorsState& state, ClockPolicy policy, u64 host_tsc, u64 realtime_ns) {
  TscPlan plan{host_tsc, 0, state.tsc_khz};
  if (policy == ClockPolicy::frozen) return plan;
  const u64 elapsed_ns = realtime_ns - std::min(realtime_ns, state.host_realtime_ns);
  plan.advance = ticks(elapsed_ns, state.tsc_khz);
  const u64 by_tsc = host_tsc - state.host_tsc;
  const u64 tolerance = ticks(kSameHostToleranceNs + elapsed_ns / 1000, state.tsc_khz);
  if (host_tsc >= state.host_tsc && distance(by_tsc, plan.advance) <= tolerance) {
    plan.advance = by_tsc;
  }
  return plan;
}

u64 TscPlan::moved_deadline(const VcpuState& state, u64 shown, u64 host_now) const {
  const u64 expected = state.tsc + advance + (host_now - host_tsc);
  // A millisecond: the two readings are not of one instant, and a deadline that needs no moving
  // shall stay as it is.
  if (distance(shown, expected) < tsc_khz) return state.tsc_deadline;
  return std::max<u64>(state.tsc_deadline + (shown - expected), 1);
}

}  // namespace kvm
