// Deliveries: what a queue has in flight, and what of it is done and not told yet.
//
// on_done() may submit again. What then ends at once is delivered by the outermost deliver(), not
// from within, so that a client that always submits does not fill the stack.
//
// Thread: that of the queue.

#pragma once

#include <vector>

#include "blockdev/block_backend.h"

namespace blockdev {

class Deliveries final {
 public:
  u32 in_flight_count() const { return in_flight_; }
  bool is_delivering() const { return is_delivering_; }

  void begin() { ++in_flight_; }
  void finish(BlockRequest& request, BlockStatus status) {
    finished_.push_back({&request, status});
  }

  void deliver() {
    if (is_delivering_) return;
    is_delivering_ = true;
    for (u64 i = 0; i < finished_.size(); ++i) {
      const Finished finished = finished_[i];
      --in_flight_;
      finished.request->client->on_done(*finished.request, finished.status);
    }
    finished_.clear();
    is_delivering_ = false;
  }

 private:
  struct Finished {
    BlockRequest* request;
    BlockStatus status;
  };

  std::vector<Finished> finished_;
  u32 in_flight_ = 0;
  bool is_delivering_ = false;
};

}  // namespace blockdev
