// DiskQueue: one thread's door to a stack of layers, with a writable one on top or none.
//
// A read is cut into pieces where the state changes. What lies in memory, is zero or must be
// decompressed is done at once on this thread; what lies in a file is given to the engine, straight
// into the client's buffers. Writes go to the active layer at once.
//
// A guest can lay out its disk so that every other sector is a piece of its own. At most kMaxPieces
// are with the engine at a time; a read with more is parked, as the place where it goes on.
//
// Invariant: a request is done exactly once, when its last piece is.
// Invariant: while a read is parked, pieces are with the engine, whose end goes on with it.
// Thread: as BlockQueue.

#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "blockdev/block_backend.h"
#include "blockdev/io_engine.h"
#include "blockdev/layer.h"
#include "vmm/base/log.h"

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
  // Twice the ring's depth, so that it stays full while completions are taken.
  static constexpr u32 kMaxPieces = 128;

  struct Read {
    BlockRequest* request = nullptr;
    ByteRange left;         // not handed out yet
    IovecCursor to{{}};     // where the first byte of `left` goes
    u32 pieces = 0;         // with the engine
    bool is_parked = true;  // is in parked_
    BlockStatus status = BlockStatus::ok;

    void skip_to(u64 offset);
    bool is_handed_out() const { return left.length == 0 || status != BlockStatus::ok; }
  };
  struct Finished {
    BlockRequest* request;
    BlockStatus status;
  };

  BlockStatus write(BlockRequest& request);
  BlockStatus write_zeroes(BlockRequest& request);
  u32 take_read(BlockRequest& request);
  void continue_parked();
  // Both go on with a read until it is handed out or the queue has its fill of pieces.
  void hand_out(u32 index);
  BlockStatus hand_out_some(u32 index);
  BlockStatus hand_out_extent(u32 index, u64 length, Lookup& lookup);
  void finish_if_done(u32 index);
  void log_read_error(u64 offset, std::string_view reason);
  void finish(BlockRequest& request, BlockStatus status);
  void deliver();

  const DiskStack& stack_;
  std::unique_ptr<IoEngine> engine_;
  std::vector<Read> reads_;
  std::vector<u32> free_reads_;
  std::deque<u32> parked_;  // in the order of submit()
  u32 pieces_ = 0;          // with the engine
  std::deque<Finished> finished_;
  std::vector<IoCompletion> completions_;
  std::vector<ByteRange> missing_;
  std::vector<iovec> slice_;
  ReadScratch scratch_;
  base::RateLimit log_limit_{10};  // a guest reads a corrupt place as often as it likes
  u32 in_flight_ = 0;
  bool delivering_ = false;  // on_done() may submit: its end is delivered by the outer call
};

}  // namespace blockdev
