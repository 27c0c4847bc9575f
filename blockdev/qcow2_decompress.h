// Decompression of one cluster. The output is always exactly one cluster: there is no bomb.

#pragma once

#include <span>

#include "blockdev/qcow2_header.h"
#include "vmm/base/result.h"

namespace blockdev::qcow2 {

// Fills `out`; what follows in `in` is ignored, as the size in an L2 entry is in sectors.
// deflate: raw, with a window of 12 bits. zstd: one or several frames.
Result<void> decompress_cluster(Compression compression, std::span<const u8> in, std::span<u8> out);

}  // namespace blockdev::qcow2
