// Qcow2Cache: slices of L2 tables, read when first needed, a bounded number of them.
//
// A slice is 4 KiB (a whole table where clusters are smaller) and immutable; readers share it by
// pointer and hold a lock only to find it. Two readers that miss at once both read it and both keep
// it; the second copy is found no more and goes as any other. Eviction goes round the ways of a set
// and spares what was used since (CLOCK).
//
// Thread: all calls from any thread.

#pragma once

#include <array>
#include <memory>
#include <vector>

#include "vmm/base/fd.h"
#include "vmm/base/mutex.h"
#include "vmm/base/wire.h"

namespace blockdev::qcow2 {

using Slice = std::vector<be64>;

class Cache final {
 public:
  // Keeps at most about `limit_bytes`. `fd` must outlive the cache.
  Cache(const base::Fd& fd, u64 slice_bytes, u64 limit_bytes);

  u64 slice_bytes() const { return slice_bytes_; }
  // REQUIRES: nobody uses it meanwhile. What it has is gone.
  void set_limit(u64 limit_bytes);
  // The slice at `file_offset`, a multiple of slice_bytes(); zeros behind the end of the file.
  Result<std::shared_ptr<const Slice>> get(u64 file_offset);

 private:
  static constexpr u64 kWays = 8;
  static constexpr u64 kLeastWays = 2;
  static constexpr u64 kLocks = 16;

  struct Way {
    u64 file_offset = 0;
    std::shared_ptr<const Slice> slice;  // null: empty
    bool was_used = false;
  };
  struct Set {
    std::array<Way, kWays> ways;
    u64 hand = 0;
  };

  Set& set_of(u64 file_offset);
  base::Mutex& lock_of(const Set& set);

  const base::Fd& fd_;
  const u64 slice_bytes_;
  std::vector<Set> sets_;  // each guarded by its lock_of()
  u64 ways_ = kWays;       // of a set, that are in use: fewer where that is the limit
  std::array<base::Mutex, kLocks> locks_;
};

}  // namespace blockdev::qcow2
