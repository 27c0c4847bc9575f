// DiskQueue: one thread's door to a stack of layers, with a writable one on top or none.
//
// A read is cut into pieces where the state changes. What lies in memory, is zero or must be
// decompressed is done at once on this thread; what lies in a file is given to the engine, straight
// into the client's buffers. Writes go to the active layer at once.
//
// Invariant: a request is done exactly once, when its last piece is.
// Thread: as BlockQueue.

#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "blockdev/block_backend.h"
#include "blockdev/io_engine.h"
#include "blockdev/layer.h"

namespace blockdev {

class OverlayLayer;

// Changes only while every queue is drained.
struct DiskStack {
  u64 size_bytes = 0;
  OverlayLayer* active = nullptr;  // null: the disk is read-only
  LayerList lower;                 // from top to bottom
};

class DiskQueue final : public BlockQueue {
 public:
  // `stack` must outlive the queue.
  DiskQueue(const DiskStack& stack, std::unique_ptr<IoEngine> engine);
  ~DiskQueue() override;

  void submit(BlockRequest& request) override;
  void poll() override;
  int completion_fd() const override { return engine_->completion_fd(); }
  u32 in_flight_count() const override { return in_flight_; }
  void drain() override;

 private:
  struct Pending {
    BlockRequest* request = nullptr;
    u32 pieces_left = 0;
    BlockStatus status = BlockStatus::ok;
  };
  struct Finished {
    BlockRequest* request;
    BlockStatus status;
  };

  BlockStatus write(BlockRequest& request);
  BlockStatus write_zeroes(BlockRequest& request);
  void read(BlockRequest& request);
  BlockStatus read_below(ByteRange range, IovecCursor& to, u32 pending);
  u32 take_pending(BlockRequest& request);
  void piece_done(u32 pending, BlockStatus status);
  void finish(BlockRequest& request, BlockStatus status);
  void deliver();

  const DiskStack& stack_;
  std::unique_ptr<IoEngine> engine_;
  std::vector<Pending> pending_;
  std::vector<u32> free_pending_;
  std::deque<Finished> finished_;
  std::vector<IoCompletion> completions_;
  std::vector<ByteRange> missing_;
  std::vector<iovec> slice_;
  ReadScratch scratch_;
  u32 in_flight_ = 0;
  bool delivering_ = false;  // on_done() may submit: its end is delivered by the outer call
};

}  // namespace blockdev
