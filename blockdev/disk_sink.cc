#include "blockdev/disk_sink.h"

#include <algorithm>

namespace blockdev {

Result<std::unique_ptr<DiskSink>> DiskSink::create(BlockBackend& disk, u64 copy_bytes,
                                                   u64 granule_bytes) {
  std::unique_ptr<BlockQueue> queue = TRY(disk.open_queue());
  return std::unique_ptr<DiskSink>(new DiskSink(std::move(queue), copy_bytes, granule_bytes));
}

Result<void> DiskSink::put(u64 offset, std::span<const u8> bytes,
                           std::span<const Granule> granules) {
  const u64 inside = std::min<u64>(bytes.size(), copy_bytes_ - offset);
  requests_.clear();
  buffers_.clear();
  // Requests point at both: neither may move.
  requests_.reserve(granules.size());
  buffers_.reserve(granules.size());
  for (u64 first = 0; first < granules.size();) {
    u64 end = first + 1;
    while (end < granules.size() && granules[end] == granules[first]) ++end;
    const u64 from = first * granule_bytes_;
    const u64 length = std::min(end * granule_bytes_, inside) - from;
    BlockRequest request;
    request.offset_bytes = offset + from;
    request.length_bytes = length;
    request.client = this;
    if (granules[first] == Granule::data) {
      request.op = BlockOp::write;
      // The interface for reading and writing is one: a write leaves the buffer as it is.
      buffers_.push_back({const_cast<u8*>(bytes.data()) + from, length});
      request.buffers = std::span(&buffers_.back(), 1);
    } else {
      request.op = BlockOp::write_zeroes;
      request.unmap = Unmap::yes;
    }
    if (granules[first] != Granule::below) requests_.push_back(request);
    first = end;
  }
  for (BlockRequest& request : requests_) queue_->submit(request);
  queue_->drain();
  return outcome();
}

Result<void> DiskSink::finish() {
  BlockRequest flush;
  flush.op = BlockOp::flush;
  flush.client = this;
  queue_->submit(flush);
  queue_->drain();
  return outcome();
}

void DiskSink::on_done(BlockRequest&, BlockStatus status) {
  if (status != BlockStatus::ok) status_ = status;
}

Result<void> DiskSink::outcome() {
  if (status_ == BlockStatus::ok) return {};
  if (status_ == BlockStatus::no_space) {
    return make_error(ErrorKind::no_space, "no space left for the image that is written");
  }
  return make_error(ErrorKind::failed, "the image could not be written");
}

}  // namespace blockdev
