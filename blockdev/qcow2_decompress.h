// Decompressor: makes one cluster of compressed bytes. The output is always exactly one cluster:
// there is no bomb.
//
// The contexts of the libraries are made when first needed and used again: making one for each
// cluster costs more than many a cluster.
//
// Thread: one at a time.

#pragma once

#include <memory>
#include <span>

#include "blockdev/qcow2_header.h"
#include "vmm/base/result.h"

struct z_stream_s;
struct ZSTD_DCtx_s;

namespace blockdev::qcow2 {

class Decompressor final {
 public:
  // Fills `out`; what follows in `in` is ignored, as the size in an L2 entry is in sectors.
  // deflate: raw, with a window of 12 bits. zstd: one or several frames.
  Result<void> run(Compression compression, std::span<const u8> in, std::span<u8> out);

 private:
  struct EndInflate {
    void operator()(z_stream_s* stream) const;
  };
  struct FreeZstd {
    void operator()(ZSTD_DCtx_s* context) const;
  };

  Result<void> inflate_cluster(std::span<const u8> in, std::span<u8> out);
  Result<void> unzstd_cluster(std::span<const u8> in, std::span<u8> out);

  std::unique_ptr<z_stream_s, EndInflate> inflate_;
  std::unique_ptr<ZSTD_DCtx_s, FreeZstd> zstd_;
};

}  // namespace blockdev::qcow2
