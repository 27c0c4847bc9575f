// compare_states: whether the processors are what a snapshot says, for `revert --verify`.
//
// Everything is compared but what goes on by itself while the guest stands still: the clocks, and
// the counters that are derived from them (kRunningMsrs and the masks in the .cc).

#pragma once

#include "vmm/base/result.h"
#include "vmm/kvm/processors.h"

namespace kvm {

// The Error names the first register group that differs.
Result<void> compare_states(const ProcessorsState& expected, const ProcessorsState& found);

}  // namespace kvm
