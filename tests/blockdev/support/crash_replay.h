// CrashReplay: the images that a loss of power may leave, from a recorded run.
//
// What is durable is what ended before the submission of a sync that has ended; of the rest, any
// subset may be there, cut at sectors, later writes over earlier ones (reference/qcow2.md 2.2). For
// every operation of the log, the moment after its submission and after its end is a crash: with
// everything, with only what is durable, with the newest operation alone or alone missing, and with
// random subsets, whole and torn. `kill -9` is the case where everything is there.
//
// Thread: one.

#pragma once

#include <functional>
#include <random>
#include <unordered_set>
#include <vector>

#include "tests/blockdev/support/io_log.h"
#include "tests/blockdev/support/sparse_image.h"

namespace blockdev::test {

struct CrashOptions {
  u32 random_subsets = 6;  // at each moment
  u32 torn_subsets = 4;
  u64 seed = 1;
};

struct CrashCounts {
  u64 built = 0;
  u64 different = 0;  // by content
};

class CrashReplay final {
 public:
  // One file; `start` is what it was, durably, before the first operation of `log`.
  CrashReplay(SparseImage start, std::vector<LoggedOperation> log);

  // All of the log, without a crash.
  SparseImage final_image() const;

  // `is_new`: no image of this content was seen before.
  enum class Seen : u8 { new_image, again };
  using Judge = std::function<void(const SparseImage&, u64 time, Seen)>;
  // Calls `judge` for each different image at each different promise. `other_times` are further
  // moments of interest; `promise_at` maps a time to what the promise then is.
  CrashCounts run(const CrashOptions& options, const std::vector<u64>& other_times,
                  const std::function<u64(u64)>& promise_at, const Judge& judge);

 private:
  enum class Part : u8 { none, whole, torn };
  using Choose = std::function<Part(u64 operation)>;

  std::vector<u64> moments(const std::vector<u64>& other_times) const;
  u64 durable_until(u64 time) const;
  // The image at `time` with what `choose` says of the operations that are not durable.
  SparseImage build(u64 time, const Choose& choose);
  void apply(SparseImage& image, const LoggedOperation& operation, Part part);
  void try_all(u64 time, const CrashOptions& options, const std::function<void(SparseImage)>& take);

  std::vector<LoggedOperation> log_;  // in the order of submission
  SparseImage base_;                  // with the first `base_count_` operations, all durable
  u64 base_count_ = 0;
  u64 durable_until_ = 0;  // of the moment that is being tried
  std::mt19937_64 random_{1};
};

}  // namespace blockdev::test
