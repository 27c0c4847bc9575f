// RawImage: a regular file or a block device whose bytes are the disk's.
//
// A file that is no multiple of 512 bytes long ends with a sector padded with zeros, as in QEMU.

#pragma once

#include <memory>

#include "blockdev/layer.h"
#include "vmm/base/fd.h"

namespace blockdev {

// The size of the disk in a raw image.
Result<u64> raw_disk_bytes(const base::Fd& fd);

class RawImage final : public Layer {
 public:
  static Result<std::shared_ptr<RawImage>> create(base::Fd fd);

  u64 size_bytes() const override { return size_bytes_; }
  Result<Extent> map(u64 offset, u64 length) const override;
  Result<void> read_computed(u64 offset, u64 length, IovecCursor& to,
                             ReadScratch& scratch) const override;

 private:
  RawImage(base::Fd fd, u64 size_bytes) : fd_(std::move(fd)), size_bytes_(size_bytes) {}

  const base::Fd fd_;
  const u64 size_bytes_;
};

}  // namespace blockdev
