#include "blockdev/disk_queue.h"

#include "blockdev/overlay_layer.h"
#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev {

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
    case BlockOp::read:
      // Behind those that wait already.
      parked_.push_back(take_read(request));
      continue_parked();
      break;
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

void DiskQueue::continue_parked() {
  while (!parked_.empty() && pieces_ < kMaxPieces) {
    const u32 index = parked_.front();
    hand_out(index);
    if (!reads_[index].is_handed_out()) break;
    parked_.pop_front();
    reads_[index].is_parked = false;
    finish_if_done(index);
  }
  engine_->kick();
}

void DiskQueue::hand_out(u32 index) {
  Read& read = reads_[index];
  while (!read.is_handed_out() && pieces_ < kMaxPieces) {
    const BlockStatus status = hand_out_some(index);
    if (status != BlockStatus::ok) read.status = status;
  }
}

BlockStatus DiskQueue::hand_out_some(u32 index) {
  Read& read = reads_[index];
  ByteRange rest = read.left;
  missing_.clear();
  if (stack_.active == nullptr) {
    missing_.push_back(rest);
    rest = {rest.offset + rest.length, 0};
  } else {
    IovecCursor to = read.to;
    const BlockStatus status = stack_.active->read(rest, to, kMaxPieces - pieces_, missing_);
    if (status != BlockStatus::ok) return status;
  }
  Lookup lookup(stack_.lower);
  for (const ByteRange& run : missing_) {
    read.skip_to(run.offset);
    const u64 end = run.offset + run.length;
    while (read.left.offset < end) {
      // What the active layer has behind this place is copied once more when the read goes on.
      if (pieces_ == kMaxPieces) return BlockStatus::ok;
      const BlockStatus status = hand_out_extent(index, end - read.left.offset, lookup);
      if (status != BlockStatus::ok) return status;
    }
  }
  read.skip_to(rest.offset);
  return BlockStatus::ok;
}

BlockStatus DiskQueue::hand_out_extent(u32 index, u64 length, Lookup& lookup) {
  Read& read = reads_[index];
  const u64 offset = read.left.offset;
  const Result<LocatedExtent> located = lookup.at(offset, length);
  if (!located) {
    log_read_error(offset, located.error().message());
    return BlockStatus::io_error;
  }
  const Extent& extent = located->extent;
  if (extent.kind == ExtentKind::zero) {
    read.to.fill_zero(extent.length_bytes);
  } else if (extent.kind == ExtentKind::computed) {
    const Result<void> done =
        located->layer->read_computed(offset, extent.length_bytes, read.to, scratch_);
    if (!done) {
      log_read_error(offset, done.error().message());
      return BlockStatus::io_error;
    }
  } else {
    read.to.slice(extent.length_bytes, slice_);
    ++read.pieces;
    ++pieces_;
    engine_->submit({IoKind::read, extent.fd, extent.file_offset, slice_, index});
  }
  read.left.offset += extent.length_bytes;
  read.left.length -= extent.length_bytes;
  return BlockStatus::ok;
}

void DiskQueue::Read::skip_to(u64 offset) {
  const u64 length = offset - left.offset;
  to.skip(length);
  left.offset += length;
  left.length -= length;
}

void DiskQueue::poll() {
  completions_.clear();
  engine_->reap(completions_);
  for (const IoCompletion& completion : completions_) {
    const u32 index = static_cast<u32>(completion.tag);
    Read& read = reads_[index];
    if (completion.error_number != 0) {
      const Error error = Error::from_errno(completion.error_number, "image file");
      log_read_error(read.request->offset_bytes, error.message());
      read.status = BlockStatus::io_error;
    }
    --read.pieces;
    --pieces_;
    finish_if_done(index);
  }
  // Not for every single completion: each time costs a look at the active layer.
  if (pieces_ <= kMaxPieces / 2) continue_parked();
  deliver();
}

void DiskQueue::drain() {
  CHECK(!delivering_);
  while (in_flight_ > 0) {
    engine_->wait();
    poll();
  }
}

u32 DiskQueue::take_read(BlockRequest& request) {
  if (free_reads_.empty()) {
    free_reads_.push_back(static_cast<u32>(reads_.size()));
    reads_.emplace_back();
  }
  const u32 index = free_reads_.back();
  free_reads_.pop_back();
  reads_[index] = {.request = &request,
                   .left = {request.offset_bytes, request.length_bytes},
                   .to = IovecCursor(request.buffers)};
  return index;
}

void DiskQueue::finish_if_done(u32 index) {
  const Read& read = reads_[index];
  if (read.is_parked || read.pieces > 0) return;
  finish(*read.request, read.status);
  free_reads_.push_back(index);
}

void DiskQueue::log_read_error(u64 offset, std::string_view reason) {
  if (!log_limit_.allows()) return;
  base::log(base::LogLevel::error, "disk: read at {:#x} failed: {}", offset, reason);
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
