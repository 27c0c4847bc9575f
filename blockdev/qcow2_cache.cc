#include "blockdev/qcow2_cache.h"

#include <algorithm>

#include "blockdev/sync_engine.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {

Cache::Cache(const base::Fd& fd, u64 slice_bytes, u64 limit_bytes)
    : fd_(fd), slice_bytes_(slice_bytes) {
  set_limit(limit_bytes);
}

void Cache::set_limit(u64 limit_bytes) {
  const u64 slices = limit_bytes / slice_bytes_;
  ways_ = std::clamp(slices, kLeastWays, kWays);
  sets_ = std::vector<Set>(std::max<u64>(1, base::divide_up(slices, kWays)));
}

Result<std::shared_ptr<const Slice>> Cache::get(u64 file_offset) {
  Set& set = set_of(file_offset);
  {
    base::MutexLock lock(lock_of(set));
    for (Way& way : set.ways) {
      if (way.slice == nullptr || way.file_offset != file_offset) continue;
      way.was_used = true;
      return way.slice;
    }
  }
  auto slice = std::make_shared<Slice>(slice_bytes_ / sizeof(be64));
  const iovec whole{slice->data(), slice_bytes_};
  const int error = run_now({IoKind::read, fd_.get(), file_offset, {&whole, 1}, 0});
  if (error != 0) return Error::from_errno(error, fmt::format("L2 table near {:#x}", file_offset));
  base::MutexLock lock(lock_of(set));
  while (set.ways[set.hand].was_used) {
    set.ways[set.hand].was_used = false;
    set.hand = (set.hand + 1) % ways_;
  }
  set.ways[set.hand] = {file_offset, slice, true};
  set.hand = (set.hand + 1) % ways_;
  return std::shared_ptr<const Slice>(std::move(slice));
}

Cache::Set& Cache::set_of(u64 file_offset) {
  // Neighbouring slices go to different sets; the multiplier spreads tables that lie at a regular
  // distance from each other (2^64 divided by the golden ratio).
  const u64 number = file_offset / slice_bytes_;
  return sets_[(number * 0x9e3779b97f4a7c15 >> 20) % sets_.size()];
}

base::Mutex& Cache::lock_of(const Set& set) {
  return locks_[static_cast<u64>(&set - sets_.data()) % kLocks];
}

}  // namespace blockdev::qcow2
