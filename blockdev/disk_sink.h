// DiskSink: a copy written through a BlockBackend: into an image that is there, by the engine that
// writes it in place.
//
// Thread: one.

#pragma once

#include <memory>
#include <vector>

#include "blockdev/block_backend.h"
#include "blockdev/image_sink.h"

namespace blockdev {

class DiskSink final : public ImageSink, private BlockClient {
 public:
  // `disk` outlives the sink and is at least as large as what is copied.
  static Result<std::unique_ptr<DiskSink>> create(BlockBackend& disk, u64 copy_bytes,
                                                  u64 granule_bytes);

  u64 granule_bytes() const override { return granule_bytes_; }
  bool wants_zeros() const override { return true; }
  Result<void> put(u64 offset, std::span<const u8> bytes,
                   std::span<const Granule> granules) override;
  Result<void> finish() override;

 private:
  DiskSink(std::unique_ptr<BlockQueue> queue, u64 copy_bytes, u64 granule_bytes)
      : queue_(std::move(queue)), copy_bytes_(copy_bytes), granule_bytes_(granule_bytes) {}

  void on_done(BlockRequest& request, BlockStatus status) override;
  Result<void> outcome();

  const std::unique_ptr<BlockQueue> queue_;
  const u64 copy_bytes_;
  const u64 granule_bytes_;
  std::vector<BlockRequest> requests_;
  std::vector<iovec> buffers_;
  BlockStatus status_ = BlockStatus::ok;
};

}  // namespace blockdev
