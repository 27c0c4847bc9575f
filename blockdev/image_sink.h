// ImageSink: where a copy of a disk goes, piece by piece from front to back (image_copy.h).
//
// Thread: one.

#pragma once

#include <memory>
#include <span>

#include "blockdev/qcow2_builder.h"

namespace blockdev {

// What becomes of one granule of the copy.
enum class Granule : u8 {
  below,  // is left out: what lies below reads the same
  zero,
  data,
};

class ImageSink {
 public:
  // A multiple of every granule.
  static constexpr u64 kPieceBytes = 2 * base::kMiB;

  virtual ~ImageSink() = default;

  // A power of two: what is told apart.
  virtual u64 granule_bytes() const = 0;
  // Whether `zero` has to be said: new images read as zeros where nothing was put.
  virtual bool wants_zeros() const = 0;
  // `bytes` is kPieceBytes long, padded with zeros behind the end of the disk; one `granules` entry
  // for each granule of the disk in it. `offset` is a multiple of kPieceBytes. Pieces of which all
  // is `below` are left out, as are those of zeros if nobody wants them.
  virtual Result<void> put(u64 offset, std::span<const u8> bytes,
                           std::span<const Granule> granules) = 0;
  // All was put; the image is durable when this returns.
  virtual Result<void> finish() = 0;
};

// A new qcow2 image. `fd` outlives the sink.
class BuilderSink final : public ImageSink {
 public:
  static Result<std::unique_ptr<BuilderSink>> create(const base::Fd& fd,
                                                     const qcow2::NewImage& image);

  u64 granule_bytes() const override { return builder_.geometry().subcluster_bytes(); }
  bool wants_zeros() const override { return has_backing_; }
  Result<void> put(u64 offset, std::span<const u8> bytes,
                   std::span<const Granule> granules) override;
  Result<void> finish() override;

 private:
  BuilderSink(const base::Fd& fd, qcow2::Builder builder, bool has_backing)
      : fd_(fd), builder_(std::move(builder)), has_backing_(has_backing) {}

  const base::Fd& fd_;
  qcow2::Builder builder_;
  const bool has_backing_;
};

// A raw image, `fd`, which outlives the sink.
class RawSink final : public ImageSink {
 public:
  enum class Target : u8 {
    fresh,     // an empty file
    existing,  // whose content is replaced; it stays longer if it is
  };
  // Runs of zeros shorter than `sparse_bytes` (a multiple of 512; 0: all) are written as data.
  RawSink(const base::Fd& fd, u64 size_bytes, u64 sparse_bytes, Target target);

  u64 granule_bytes() const override { return granule_bytes_; }
  bool wants_zeros() const override { return target_ == Target::existing; }
  Result<void> put(u64 offset, std::span<const u8> bytes,
                   std::span<const Granule> granules) override;
  Result<void> finish() override;

 private:
  Result<void> put_zeros(u64 offset, u64 length);

  const base::Fd& fd_;
  const u64 size_bytes_;
  const u64 sparse_bytes_;
  const Target target_;
  u64 granule_bytes_ = 4096;
};

}  // namespace blockdev
