// IoLog and RecordingEngine: every write, sync, punch and truncate that an engine was given, with
// its data and the times of its submission and its end.
//
// Thread: IoLog any; RecordingEngine as IoEngine.

#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "blockdev/io_engine.h"
#include "tests/blockdev/support/sector_history.h"
#include "vmm/base/mutex.h"

namespace blockdev::test {

struct LoggedOperation {
  IoKind kind = IoKind::write;
  u64 file = 0;  // inode
  u64 offset = 0;
  u64 length = 0;             // punch
  std::vector<u8> data = {};  // write
  u64 submitted = 0;
  u64 done = kNever;
  int error_number = 0;
};

class IoLog final {
 public:
  explicit IoLog(Timeline& timeline) : timeline_(timeline) {}

  static constexpr u64 kNotLogged = ~u64{0};
  u64 begin(const IoOperation& operation) EXCLUDES_LOCK(mutex_);  // a read: kNotLogged
  void end(u64 index, int error_number) EXCLUDES_LOCK(mutex_);
  std::vector<LoggedOperation> operations() const EXCLUDES_LOCK(mutex_);

 private:
  Timeline& timeline_;
  mutable base::Mutex mutex_;
  std::vector<LoggedOperation> operations_ GUARDED_BY(mutex_);
};

class RecordingEngine final : public IoEngine {
 public:
  RecordingEngine(std::unique_ptr<IoEngine> inner, IoLog& log)
      : inner_(std::move(inner)), log_(log) {}

  void submit(const IoOperation& operation) override;
  void kick() override { inner_->kick(); }
  void reap(std::vector<IoCompletion>& completions) override;
  void wait() override { inner_->wait(); }
  int completion_fd() const override { return inner_->completion_fd(); }
  u32 in_flight_count() const override { return inner_->in_flight_count(); }

 private:
  struct Slot {
    u64 tag;
    u64 log_index;
  };
  std::unique_ptr<IoEngine> inner_;
  IoLog& log_;
  std::vector<Slot> slots_;
  std::vector<u64> free_slots_;
  std::vector<IoCompletion> reaped_;
};

// Engines of `inner`, recorded. `log` must outlive them.
EngineMaker recording_engines(EngineMaker inner, IoLog& log);

}  // namespace blockdev::test
