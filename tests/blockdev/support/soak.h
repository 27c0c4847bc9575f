// Soak: whether a randomised test runs its fixed number of steps or, asked for by the environment,
// on and on from other seeds: QUICKSAVE_SOAK_SECONDS, QUICKSAVE_SOAK_SEED.

#pragma once

#include <chrono>
#include <cstdlib>

#include "vmm/base/types.h"

namespace blockdev::test {

class Soak final {
 public:
  bool is_long() const { return seconds_ != 0; }
  bool is_over() const { return std::chrono::steady_clock::now() >= end_; }
  u64 first_seed() const { return seed_; }

 private:
  static u64 number(const char* name, u64 otherwise) {
    const char* const text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
  }
  u64 seconds_ = number("QUICKSAVE_SOAK_SECONDS", 0);
  u64 seed_ = number("QUICKSAVE_SOAK_SEED", 1);
  std::chrono::steady_clock::time_point end_ =
      std::chrono::steady_clock::now() + std::chrono::seconds(seconds_);
};

}  // namespace blockdev::test
