#include "blockdev/disk_reader.h"

#include "blockdev/overlay_layer.h"

namespace blockdev {

void DiskReader::submit(BlockRequest& request) {
  const u32 index = take_read(request);
  // Behind those that wait already.
  if (parked_.empty()) hand_out(index);
  if (reads_[index].is_handed_out()) {
    unpark(index);
  } else {
    parked_.push_back(index);
    continue_parked();
  }
  if (pieces_ > 0) engine_.kick();
}

u32 DiskReader::take_read(BlockRequest& request) {
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

void DiskReader::continue_parked() {
  while (!parked_.empty() && pieces_ < kMaxPieces) {
    const u32 index = parked_.front();
    hand_out(index);
    if (!reads_[index].is_handed_out()) break;
    parked_.pop_front();
    unpark(index);
  }
}

void DiskReader::hand_out(u32 index) {
  while (!reads_[index].is_handed_out() && pieces_ < kMaxPieces) {
    const BlockStatus status = hand_out_some(index);
    if (status != BlockStatus::ok) reads_[index].status = status;
  }
}

BlockStatus DiskReader::hand_out_some(u32 index) {
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
  if (!missing_.empty()) {
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
  }
  read.skip_to(rest.offset);
  return BlockStatus::ok;
}

BlockStatus DiskReader::hand_out_extent(u32 index, u64 length, Lookup& lookup) {
  Read& read = reads_[index];
  const u64 offset = read.left.offset;
  const Result<LocatedExtent> located = lookup.at(offset, length);
  if (!located) return failed(offset, located.error().message());
  const Extent& extent = located->extent;
  if (extent.kind == ExtentKind::zero) {
    read.to.fill_zero(extent.length_bytes);
  } else if (extent.kind == ExtentKind::computed) {
    const Result<void> done =
        located->layer->read_computed(offset, extent.length_bytes, read.to, scratch_);
    if (!done) return failed(offset, done.error().message());
  } else {
    const BlockStatus status = hand_out_file(index, extent);
    if (status != BlockStatus::ok) return status;
  }
  read.left.offset += extent.length_bytes;
  read.left.length -= extent.length_bytes;
  return BlockStatus::ok;
}

BlockStatus DiskReader::hand_out_file(u32 index, const Extent& extent) {
  Read& read = reads_[index];
  read.to.slice(extent.length_bytes, slice_);
  const IoOperation operation{IoKind::read, extent.fd, extent.file_offset, slice_, index};
  const std::optional<int> now = engine_.try_now(operation);
  if (!now) {
    ++read.pieces;
    ++pieces_;
    engine_.submit(operation);
  } else if (*now != 0) {
    return failed(read.left.offset, Error::from_errno(*now, "image file").message());
  }
  return BlockStatus::ok;
}

void DiskReader::Read::skip_to(u64 offset) {
  const u64 length = offset - left.offset;
  to.skip(length);
  left.offset += length;
  left.length -= length;
}

void DiskReader::complete(const IoCompletion& completion) {
  const u32 index = static_cast<u32>(completion.tag);
  Read& read = reads_[index];
  if (completion.error_number != 0) {
    const Error error = Error::from_errno(completion.error_number, "image file");
    read.status = failed(read.request->offset_bytes, error.message());
  }
  --read.pieces;
  --pieces_;
  finish_if_done(index);
}

void DiskReader::go_on() {
  // Not for every single completion: each time costs a look at the active layer.
  if (parked_.empty() || pieces_ > kMaxPieces / 2) return;
  continue_parked();
  engine_.kick();
}

void DiskReader::unpark(u32 index) {
  reads_[index].is_parked = false;
  finish_if_done(index);
}

void DiskReader::finish_if_done(u32 index) {
  const Read& read = reads_[index];
  if (read.is_parked || read.pieces > 0) return;
  deliveries_.finish(*read.request, read.status);
  free_reads_.push_back(index);
}

BlockStatus DiskReader::failed(u64 offset, std::string_view reason) {
  if (log_limit_.allows()) {
    base::log(base::LogLevel::error, "disk: read at {:#x} failed: {}", offset, reason);
  }
  return BlockStatus::io_error;
}

}  // namespace blockdev
