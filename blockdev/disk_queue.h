// DiskQueue: one thread's door to a stack of layers that are read, with a throw-away one on top
// that is written, or none.
//
// Reads are DiskReader's. Writes go to the active layer at once.
//
// Thread: as BlockQueue.

#pragma once

#include <memory>
#include <vector>

#include "blockdev/block_backend.h"
#include "blockdev/disk_reader.h"
#include "blockdev/io_engine.h"

namespace blockdev {

class DiskQueue final : public BlockQueue {
 public:
  // `stack` must outlive the queue.
  DiskQueue(const DiskStack& stack, std::unique_ptr<IoEngine> engine);
  ~DiskQueue() override;

  void submit(BlockRequest& request) override;
  void poll() override;
  int completion_fd() const override { return engine_->completion_fd(); }
  u32 in_flight_count() const override { return deliveries_.in_flight_count(); }
  void drain() override;

 private:
  BlockStatus write(BlockRequest& request);
  BlockStatus write_zeroes(BlockRequest& request);

  const DiskStack& stack_;
  std::unique_ptr<IoEngine> engine_;
  Deliveries deliveries_;
  DiskReader reader_;
  std::vector<IoCompletion> completions_;
};

}  // namespace blockdev
