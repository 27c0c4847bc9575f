// DiskGuest: a VM of this program whose guest (guests/disk_load.c) keeps its disk busy as it is
// told.
//
// Thread: one.

#pragma once

#include "vmm/bench/child.h"
#include "vmm/bench/thread_times.h"
#include "vmm/bench/workspace.h"
#include "vmm/control/api_client.h"

namespace bench {

// Requests of 4 KiB. `step`, `first` and `count` go by blocks of that size.
struct DiskLoad {
  enum class Op : u8 { read, write };
  static constexpr u64 kUntilEnded = 0;

  Op op = Op::read;
  u64 count = kUntilEnded;
  u64 depth = 0;
  u64 step = 1;
  u64 first = 0;
  u64 blocks = 0;
};

// As the guest saw it.
struct DiskLoadResult {
  u64 requests = 0;
  u64 us = 0;
  u64 kicks = 0;
  // Of a request's time, from the ring to its answer.
  u64 median_ns = 0;
  u64 p99_ns = 0;
  u64 longest_ns = 0;

  double per_second() const {
    return static_cast<double>(requests) * 1e6 / static_cast<double>(us);
  }
};

struct SnapshotCost {
  double pause_us = 0;
  double total_us = 0;  // until it was durable
  u64 disk_bytes = 0;
};

class DiskGuest final {
 public:
  // `disk`: the argument of --disk.
  static Result<DiskGuest> start(const Workspace& workspace, const std::string& disk);

  Result<DiskLoadResult> run(const DiskLoad& load);
  // In two steps, for what happens meanwhile. REQUIRES: load.count is kUntilEnded.
  Result<void> begin(const DiskLoad& load);
  Result<DiskLoadResult> end();

  // Returns when it is durable.
  Result<SnapshotCost> snapshot(const std::string& name);
  Result<ThreadTimesByName> thread_times() const { return thread_times_of(child_.pid()); }

 private:
  DiskGuest(Child child, control::ApiClient api, base::Fd console)
      : child_(std::move(child)), api_(std::move(api)), console_(std::move(console)) {}

  Result<void> send(const std::string& text);
  // The rest of the line that begins with `word`; those before it are passed over.
  Result<std::string> hear(std::string_view word);
  Result<DiskLoadResult> hear_result();

  Child child_;
  control::ApiClient api_;
  base::Fd console_;
};

}  // namespace bench
