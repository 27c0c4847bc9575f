// DiskReader: the reading half of a queue, over a stack of layers with a throw-away one on top or
// none.
//
// A read is cut into pieces where the state changes. What lies in memory, is zero or must be
// decompressed is done at once on this thread; what lies in a file is given to the engine, straight
// into the client's buffers.
//
// A guest can lay out its disk so that every other sector is a piece of its own. At most kMaxPieces
// are with the engine at a time; a read with more is parked, as the place where it goes on.
//
// Invariant: a read is finished exactly once, when its last piece is done.
// Invariant: while a read is parked, pieces are with the engine, whose end goes on with it.
// Thread: that of the queue.

#pragma once

#include <deque>
#include <string_view>
#include <vector>

#include "blockdev/deliveries.h"
#include "blockdev/io_engine.h"
#include "blockdev/layer.h"
#include "vmm/base/log.h"

namespace blockdev {

class OverlayLayer;

// Changes only while every queue is drained.
struct DiskStack {
  u64 size_bytes = 0;
  OverlayLayer* active = nullptr;  // null: no throw-away layer
  LayerList lower;                 // from top to bottom
};

class DiskReader final {
 public:
  // All three must outlive the reader. The tags of its operations are smaller than kTagLimit.
  DiskReader(const DiskStack& stack, IoEngine& engine, Deliveries& deliveries)
      : stack_(stack), engine_(engine), deliveries_(deliveries) {}
  static constexpr u64 kTagLimit = u64{1} << 32;

  void submit(BlockRequest& request);
  // Takes the end of one of this reader's operations.
  void complete(const IoCompletion& completion);
  // Call after a batch of complete().
  void go_on();

 private:
  // Twice the ring's depth, so that it stays full while completions are taken.
  static constexpr u32 kMaxPieces = 128;

  struct Read {
    BlockRequest* request = nullptr;
    ByteRange left;         // not handed out yet
    IovecCursor to{{}};     // where the first byte of `left` goes
    u32 pieces = 0;         // with the engine
    bool is_parked = true;  // is in parked_, or about to be
    BlockStatus status = BlockStatus::ok;

    void skip_to(u64 offset);
    bool is_handed_out() const { return left.length == 0 || status != BlockStatus::ok; }
  };

  u32 take_read(BlockRequest& request);
  void continue_parked();
  // Both go on with a read until it is handed out or the queue has its fill of pieces.
  void hand_out(u32 index);
  BlockStatus hand_out_some(u32 index);
  BlockStatus hand_out_extent(u32 index, u64 length, Lookup& lookup);
  BlockStatus hand_out_file(u32 index, const Extent& extent);
  void unpark(u32 index);
  void finish_if_done(u32 index);
  BlockStatus failed(u64 offset, std::string_view reason);

  const DiskStack& stack_;
  IoEngine& engine_;
  Deliveries& deliveries_;
  std::vector<Read> reads_;
  std::vector<u32> free_reads_;
  std::deque<u32> parked_;  // in the order of submit()
  u32 pieces_ = 0;          // with the engine
  std::vector<ByteRange> missing_;
  std::vector<iovec> slice_;
  ReadScratch scratch_;
  base::RateLimit log_limit_{10};  // a guest reads a corrupt place as often as it likes
};

}  // namespace blockdev
