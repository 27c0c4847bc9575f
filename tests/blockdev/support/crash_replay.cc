#include "tests/blockdev/support/crash_replay.h"

#include <algorithm>
#include <set>

namespace blockdev::test {

CrashReplay::CrashReplay(SparseImage start, std::vector<LoggedOperation> log)
    : log_(std::move(log)), base_(std::move(start)) {}

// What ended before this was made durable by a sync that had ended by `time`.
u64 CrashReplay::durable_until(u64 time) const {
  u64 until = 0;
  for (const LoggedOperation& sync : log_) {
    if (sync.kind != IoKind::sync || sync.error_number != 0 || sync.done > time) continue;
    until = std::max(until, sync.submitted);
  }
  return until;
}

void CrashReplay::apply(SparseImage& image, const LoggedOperation& operation, Part part) {
  if (part == Part::none) return;
  switch (operation.kind) {
    case IoKind::read:
    case IoKind::sync: break;
    case IoKind::truncate: image.truncate(operation.offset); break;
    case IoKind::punch: {
      if (part == Part::whole) return image.punch(operation.offset, operation.length);
      // A file system frees block by block.
      for (u64 at = operation.offset; at < operation.offset + operation.length;) {
        const u64 end = std::min(operation.offset + operation.length, (at / 4096 + 1) * 4096);
        if (random_() % 2 == 0) image.punch(at, end - at);
        at = end;
      }
      break;
    }
    case IoKind::write: {
      if (part == Part::whole) return image.write(operation.offset, operation.data);
      const std::span<const u8> data = operation.data;
      for (u64 at = 0; at < data.size();) {
        const u64 offset = operation.offset + at;
        const u64 length = std::min(data.size() - at, (offset / 512 + 1) * 512 - offset);
        if (random_() % 2 == 0) image.write(offset, data.subspan(at, length));
        at += length;
      }
      break;
    }
  }
}

SparseImage CrashReplay::build(u64 time, const Choose& choose) {
  SparseImage image = base_;
  for (u64 i = base_count_; i < log_.size() && log_[i].submitted <= time; ++i) {
    apply(image, log_[i], log_[i].done < durable_until_ ? Part::whole : choose(i));
  }
  return image;
}

SparseImage CrashReplay::final_image() const {
  SparseImage image = base_;
  CrashReplay copy(base_, {});
  for (u64 i = base_count_; i < log_.size(); ++i) {
    if (log_[i].error_number == 0) copy.apply(image, log_[i], Part::whole);
  }
  return image;
}

std::vector<u64> CrashReplay::moments(const std::vector<u64>& other_times) const {
  std::set<u64> times(other_times.begin(), other_times.end());
  for (const LoggedOperation& operation : log_) {
    times.insert(operation.submitted);
    if (operation.kind == IoKind::sync && operation.done != kNever) times.insert(operation.done);
  }
  return {times.begin(), times.end()};
}

void CrashReplay::try_all(u64 time, const CrashOptions& options,
                          const std::function<void(SparseImage)>& take) {
  u64 newest = base_count_;
  u64 open = 0;  // operations that may be there or not
  for (u64 i = base_count_; i < log_.size() && log_[i].submitted <= time; ++i) {
    newest = i;
    if (log_[i].kind != IoKind::sync && log_[i].done >= durable_until_) ++open;
  }
  take(build(time, [](u64) { return Part::whole; }));
  if (open == 0) return;
  take(build(time, [](u64) { return Part::none; }));
  take(build(time, [&](u64 i) { return i == newest ? Part::torn : Part::whole; }));
  take(build(time, [&](u64 i) { return i == newest ? Part::whole : Part::none; }));
  take(build(time, [&](u64 i) { return i == newest ? Part::none : Part::whole; }));
  for (u32 i = 0; open > 1 && i < options.random_subsets; ++i) {
    take(build(time, [&](u64) { return random_() % 2 == 0 ? Part::whole : Part::none; }));
  }
  for (u32 i = 0; i < options.torn_subsets; ++i) {
    take(build(time, [&](u64) {
      const Part parts[] = {Part::none, Part::whole, Part::torn};
      return parts[random_() % 3];
    }));
  }
}

CrashCounts CrashReplay::run(const CrashOptions& options, const std::vector<u64>& other_times,
                             const std::function<u64(u64)>& promise_at, const Judge& judge) {
  random_.seed(options.seed);
  CrashCounts counts;
  std::unordered_set<u64> contents;
  std::set<std::pair<u64, u64>> judged;
  for (const u64 time : moments(other_times)) {
    durable_until_ = durable_until(time);
    while (base_count_ < log_.size() && log_[base_count_].submitted <= time &&
           (log_[base_count_].kind == IoKind::sync || log_[base_count_].done < durable_until_)) {
      apply(base_, log_[base_count_++], Part::whole);
    }
    try_all(time, options, [&](const SparseImage& image) {
      ++counts.built;
      const u64 hash = image.hash();
      const bool is_new = contents.insert(hash).second;
      if (is_new) ++counts.different;
      if (!judged.emplace(hash, promise_at(time)).second) return;
      judge(image, time, is_new ? Seen::new_image : Seen::again);
    });
  }
  return counts;
}

}  // namespace blockdev::test
