// BenchLoad: requests of one kind, one after the other through a disk, so many in flight.
//
// The order is that of `qemu-img bench`: the first request begins at `offset`, each other one
// `step` behind it, and behind the end of the disk it goes on from its start.
//
// Thread: one.

#pragma once

#include <memory>
#include <vector>

#include "blockdev/block_backend.h"
#include "vmm/base/fd.h"

namespace image {

// Whether the queue runs empty before a flush that the load makes.
enum class FlushDrains : u8 { no, yes };

struct BenchPlan {
  blockdev::BlockOp op = blockdev::BlockOp::read;
  u64 count = 75'000;
  u32 depth = 64;
  u64 offset_bytes = 0;
  u64 request_bytes = 4096;
  u64 step_bytes = 4096;
  u64 flush_interval = 0;  // a flush whenever so many are left, or a multiple; 0: none
  FlushDrains flush_drains = FlushDrains::yes;
  u8 pattern = 0;  // what is written
};

class BenchLoad final : private blockdev::BlockClient {
 public:
  // `queue` must outlive the load. REQUIRES: a request fits into the disk.
  static Result<std::unique_ptr<BenchLoad>> create(blockdev::BlockQueue& queue, u64 disk_bytes,
                                                   const BenchPlan& plan);

  // Ends with the first request that fails.
  Result<void> run();

 private:
  BenchLoad(blockdev::BlockQueue& queue, u64 disk_bytes, const BenchPlan& plan,
            base::Mapping memory);
  void on_done(blockdev::BlockRequest& request, blockdev::BlockStatus status) override;
  void submit_more();
  void submit_next(blockdev::BlockRequest& request);
  bool is_flush_due() const;
  void submit_flush();

  blockdev::BlockQueue& queue_;
  const u64 disk_bytes_;
  const BenchPlan plan_;
  // A buffer for each request in flight. Pages: direct I/O asks for them, and some processors copy
  // to 16 bytes behind the start of one, where large vectors lie, at a third of the speed.
  const base::Mapping memory_;
  std::vector<iovec> buffers_;
  std::vector<blockdev::BlockRequest> requests_;
  std::vector<blockdev::BlockRequest*> idle_;
  blockdev::BlockRequest flush_;
  u64 left_;  // not submitted yet
  u64 offset_;
  u64 flushed_at_;  // what was left at the last flush
  bool is_flushing_ = false;
  bool is_submitting_ = false;
  blockdev::BlockStatus status_ = blockdev::BlockStatus::ok;
};

}  // namespace image
