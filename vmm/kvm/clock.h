// The clocks of a restored guest: kvmclock and the TSC.
//
// realtime: both go on as if they had run from T until now. frozen: both go on from T.
//
// Thread: as Processors.

#pragma once

#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/kvm/processors.h"

namespace kvm {

// The three clocks at one instant.
struct ClockReading {
  u64 kvmclock_ns = 0;
  u64 realtime_ns = 0;  // CLOCK_REALTIME
  u64 tsc = 0;          // the host's
};

u64 realtime_ns();
Result<ClockReading> read_clock(const base::Fd& vm);
Result<void> set_kvmclock(const base::Fd& vm, const ProcessorsState& state, ClockPolicy policy);

// Whether a write of the guest's TSC has an effect. Some KVMs report success and ignore it, so it
// is written and read back; the TSC is left as it was.
Result<bool> tsc_can_be_set(VcpuStateTransfer& vcpu);

// What the guest's TSC should show after a restore: `advance` more than at T when the host's shows
// `host_tsc`.
struct TscPlan {
  u64 host_tsc = 0;
  u64 advance = 0;
  u64 tsc_khz = 1;

  // Guest TSC minus host TSC, for a vCPU whose TSC was `tsc_at_t`.
  u64 offset(u64 tsc_at_t) const { return tsc_at_t + advance - host_tsc; }
  // The deadline in terms of a TSC that shows `shown` when the host's shows `host_now`. Never 0,
  // which would disarm the timer.
  u64 moved_deadline(const VcpuState& state, u64 shown, u64 host_now) const;
};

TscPlan plan_tsc(const ProcessorsState& state, ClockPolicy policy, u64 host_tsc, u64 realtime_ns);

}  // namespace kvm
