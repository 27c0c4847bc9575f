// Stopwatch: microseconds of CLOCK_MONOTONIC, in laps.

#pragma once

#include <chrono>
#include <utility>

#include "vmm/base/types.h"

namespace vmm {

class Stopwatch final {
 public:
  u64 total_us() const { return microseconds(Clock::now() - start_); }
  // Since the last lap, or the start.
  u64 lap_us() {
    const Clock::time_point now = Clock::now();
    return microseconds(now - std::exchange(lap_, now));
  }

 private:
  using Clock = std::chrono::steady_clock;
  static u64 microseconds(Clock::duration duration) {
    return static_cast<u64>(
        std::chrono::duration_cast<std::chrono::microseconds>(duration).count());
  }

  Clock::time_point start_ = Clock::now();
  Clock::time_point lap_ = start_;
};

}  // namespace vmm
