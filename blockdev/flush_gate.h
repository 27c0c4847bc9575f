// FlushGate: a disk whose flushes can be held back while what they would promise does not hold yet.
//
// A flush says that what was written survives. After a disk was split or put back on other layers
// that takes more than its own file: the manifest, and the record of which file is the disk now.
// Until they are durable the gate is closed. Reads and writes pass; a flush waits in its queue, and
// a drain does not wait for it: it ends as `not_begun`, for the client to submit again.
//
// Several reasons may keep the gate closed, each counted. When what was waited for has failed,
// flushes fail as long as that is so.
//
// Invariant: no flush reaches the disk while the gate is closed.
// Thread: hold(), release() and fail() from any thread; a flush that is submitted at the same time
// may be on either side. Queues as BlockQueue says.

#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "blockdev/block_backend.h"
#include "vmm/base/mutex.h"

namespace blockdev {

class FlushGate final : public BlockBackend {
 public:
  explicit FlushGate(std::unique_ptr<BlockBackend> disk) : disk_(std::move(disk)) {}
  // REQUIRES: its queues are gone.
  ~FlushGate() override;

  void hold() { holders_.fetch_add(1); }
  // REQUIRES: as many hold() as release().
  void release();
  // From now on flushes end with `status`; `ok`: they reach the disk.
  void fail(BlockStatus status);

  u64 size_bytes() const override { return disk_->size_bytes(); }
  bool is_read_only() const override { return disk_->is_read_only(); }
  u32 discard_granularity_bytes() const override { return disk_->discard_granularity_bytes(); }
  Result<std::unique_ptr<BlockQueue>> open_queue() override;
  Result<std::vector<ContentRun>> map_content(u64 offset_bytes, u64 length_bytes,
                                              u64 max_runs) const override {
    return disk_->map_content(offset_bytes, length_bytes, max_runs);
  }

 private:
  class Queue;

  bool is_closed() const { return holders_.load() != 0; }

  const std::unique_ptr<BlockBackend> disk_;
  std::atomic<u32> holders_{0};
  std::atomic<BlockStatus> failure_{BlockStatus::ok};
  base::Mutex mutex_;
  std::vector<Queue*> queues_ GUARDED_BY(mutex_);
};

}  // namespace blockdev
