#include "blockdev/disk_queue.h"

#include "blockdev/overlay_layer.h"
#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev {

DiskQueue::DiskQueue(const DiskStack& stack, std::unique_ptr<IoEngine> engine)
    : stack_(stack), engine_(std::move(engine)), reader_(stack_, *engine_, deliveries_) {}

DiskQueue::~DiskQueue() { CHECK(in_flight_count() == 0); }

void DiskQueue::submit(BlockRequest& request) {
  CHECK(base::contains(stack_.size_bytes, request.offset_bytes, request.length_bytes));
  CHECK(base::is_aligned(request.offset_bytes | request.length_bytes, kSectorBytes));
  deliveries_.begin();
  switch (request.op) {
    case BlockOp::read: reader_.submit(request); break;
    case BlockOp::write: deliveries_.finish(request, write(request)); break;
    case BlockOp::discard:
    case BlockOp::write_zeroes: deliveries_.finish(request, write_zeroes(request)); break;
    // A throw-away overlay promises nothing, and a read-only disk has nothing to make durable.
    case BlockOp::flush: deliveries_.finish(request, BlockStatus::ok); break;
  }
  deliveries_.deliver();
}

BlockStatus DiskQueue::write(BlockRequest& request) {
  if (stack_.active == nullptr) return BlockStatus::read_only;
  IovecCursor from(request.buffers);
  return stack_.active->write(request.offset_bytes, request.length_bytes, from);
}

BlockStatus DiskQueue::write_zeroes(BlockRequest& request) {
  if (stack_.active == nullptr) return BlockStatus::read_only;
  stack_.active->write_zeroes(request.offset_bytes, request.length_bytes);
  return BlockStatus::ok;
}

void DiskQueue::poll() {
  completions_.clear();
  engine_->reap(completions_);
  for (const IoCompletion& completion : completions_) reader_.complete(completion);
  reader_.go_on();
  deliveries_.deliver();
}

void DiskQueue::drain() {
  CHECK(!deliveries_.is_delivering());
  while (in_flight_count() > 0) {
    engine_->wait();
    poll();
  }
}

}  // namespace blockdev
