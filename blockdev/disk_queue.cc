#include "blockdev/disk_queue.h"

#include "blockdev/overlay_layer.h"
#include "vmm/base/check.h"
#include "vmm/base/log.h"
#include "vmm/base/ranges.h"

namespace blockdev {
namespace {

// A guest can read a corrupt place of its image as often as it likes.
base::RateLimit g_read_error_limit{10};

void log_read_error(u64 offset, std::string_view reason) {
  if (!g_read_error_limit.allows()) return;
  base::log(base::LogLevel::error, "disk: read at {:#x} failed: {}", offset, reason);
}

}  // namespace

DiskQueue::DiskQueue(const DiskStack& stack, std::unique_ptr<IoEngine> engine)
    : stack_(stack), engine_(std::move(engine)) {}

DiskQueue::~DiskQueue() {
  CHECK(in_flight_ == 0);
}

void DiskQueue::submit(BlockRequest& request) {
  CHECK(base::contains(stack_.size_bytes, request.offset_bytes, request.length_bytes));
  CHECK(base::is_aligned(request.offset_bytes | request.length_bytes, kSectorBytes));
  ++in_flight_;
  switch (request.op) {
    case BlockOp::read: read(request); break;
    case BlockOp::write: finish(request, write(request)); break;
    case BlockOp::discard:
    case BlockOp::write_zeroes: finish(request, write_zeroes(request)); break;
    // A throw-away overlay promises nothing, and a read-only disk has nothing to make durable.
    case BlockOp::flush: finish(request, BlockStatus::ok); break;
  }
  deliver();
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

void DiskQueue::read(BlockRequest& request) {
  const u32 pending = take_pending(request);
  BlockStatus status = BlockStatus::ok;
  missing_.clear();
  if (stack_.active == nullptr) {
    missing_.push_back({request.offset_bytes, request.length_bytes});
  } else {
    status = stack_.active->read(request.offset_bytes, request.length_bytes,
                                 IovecCursor(request.buffers), missing_);
  }
  IovecCursor to(request.buffers);
  u64 at = request.offset_bytes;
  for (const ByteRange& range : missing_) {
    if (status != BlockStatus::ok) break;
    to.skip(range.offset - at);
    status = read_below(range, to, pending);
    at = range.offset + range.length;
  }
  engine_->kick();
  piece_done(pending, status);
}

BlockStatus DiskQueue::read_below(ByteRange range, IovecCursor& to, u32 pending) {
  while (range.length > 0) {
    const Result<LocatedExtent> located = locate(stack_.lower, range.offset, range.length);
    if (!located) {
      log_read_error(range.offset, located.error().message());
      return BlockStatus::io_error;
    }
    const Extent& extent = located->extent;
    if (extent.kind == ExtentKind::zero) {
      to.fill_zero(extent.length_bytes);
    } else if (extent.kind == ExtentKind::computed) {
      const Result<void> done =
          located->layer->read_computed(range.offset, extent.length_bytes, to, scratch_);
      if (!done) {
        log_read_error(range.offset, done.error().message());
        return BlockStatus::io_error;
      }
    } else {
      to.slice(extent.length_bytes, slice_);
      ++pending_[pending].pieces_left;
      engine_->submit({IoKind::read, extent.fd, extent.file_offset, slice_, pending});
    }
    range.offset += extent.length_bytes;
    range.length -= extent.length_bytes;
  }
  return BlockStatus::ok;
}

void DiskQueue::poll() {
  completions_.clear();
  engine_->reap(completions_);
  for (const IoCompletion& completion : completions_) {
    if (completion.error_number != 0) {
      const Error error = Error::from_errno(completion.error_number, "image file");
      log_read_error(pending_[completion.tag].request->offset_bytes, error.message());
    }
    piece_done(static_cast<u32>(completion.tag),
               completion.error_number == 0 ? BlockStatus::ok : BlockStatus::io_error);
  }
  deliver();
}

void DiskQueue::drain() {
  CHECK(!delivering_);
  while (in_flight_ > 0) {
    engine_->wait();
    poll();
  }
}

u32 DiskQueue::take_pending(BlockRequest& request) {
  if (free_pending_.empty()) {
    free_pending_.push_back(static_cast<u32>(pending_.size()));
    pending_.emplace_back();
  }
  const u32 index = free_pending_.back();
  free_pending_.pop_back();
  // One piece more than there are: the one that read() itself finishes at its end.
  pending_[index] = {&request, 1, BlockStatus::ok};
  return index;
}

void DiskQueue::piece_done(u32 index, BlockStatus status) {
  Pending& pending = pending_[index];
  if (status != BlockStatus::ok) pending.status = status;
  if (--pending.pieces_left > 0) return;
  finish(*pending.request, pending.status);
  free_pending_.push_back(index);
}

void DiskQueue::finish(BlockRequest& request, BlockStatus status) {
  finished_.push_back({&request, status});
}

void DiskQueue::deliver() {
  if (delivering_) return;
  delivering_ = true;
  while (!finished_.empty()) {
    const Finished finished = finished_.front();
    finished_.pop_front();
    --in_flight_;
    finished.request->client->on_done(*finished.request, finished.status);
  }
  delivering_ = false;
}

}  // namespace blockdev
