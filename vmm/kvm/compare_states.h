// compare_states: whether the processors are what a snapshot says, for `revert --verify`.
//
// Everything is compared but what goes on by itself while the guest stands still: the clocks, and
// the counters that are derived from them (kRunningMsrs and the masks in the .cc).

#pragma once

#include <vector>

#include "vmm/base/result.h"
#include "vmm/kvm/processors.h"

namespace kvm {

// The Error names the first register group that differs.
Result<void> compare_states(const ProcessorsState& expected, const ProcessorsState& found);

// Where the guest has its kvmclock structures: KVM writes them anew whenever the clock is set, so
// they are not T's after a restore.
std::vector<Gpa> clock_pages(const ProcessorsState& state);

}  // namespace kvm
