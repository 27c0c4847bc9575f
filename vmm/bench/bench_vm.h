// BenchVm: a VM with the benchmark's guest in it, and one snapshot at which the guest speaks: ours
// or a peer's.
//
// Thread: one.

#pragma once

#include "vmm/bench/guest_line.h"

namespace bench {

struct RevertTime {
  double client_us = 0;  // from the request to the guest's first byte
  double own_us = 0;     // what the VMM says it took; 0 if it says nothing
};

class BenchVm {
 public:
  virtual ~BenchVm() = default;

  virtual GuestLine& guest() = 0;
  virtual pid_t pid() const = 0;
  // Takes the snapshot that revert() goes back to; the guest speaks in it.
  virtual Result<void> snapshot() = 0;
  // REQUIRES: the guest was silent.
  virtual Result<RevertTime> revert() = 0;
  // A VM that is not measured now uses no processor.
  virtual Result<void> pause() = 0;
  virtual Result<void> resume() = 0;
};

struct BenchVmSpec {
  u64 memory_mib = 0;
  u64 mapped_pages = 0;
};

// One revert: the guest maps its pages again, writes to `dirty_pages` of them, and is taken back.
Result<RevertTime> revert_once(BenchVm& vm, u64 dirty_pages);

}  // namespace bench
