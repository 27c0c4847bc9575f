// A new qcow2 image: what it is to be like, and the file without any data.
//
// Version 3, the strict profile (reference/qcow2.md section 5): refcounts of 16 bits, every cluster
// referred to once, no lazy refcounts, no compression, the backing file's format always stated.
// Tools that read every qcow2 image get standard clusters of 64 KiB, the default; layers of our own
// are better off with kOverlayProfile, where a write of 4 KiB allocates no more than that.

#pragma once

#include <string>

#include "blockdev/qcow2_map.h"
#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace blockdev::qcow2 {

enum class L2Entries : u8 { standard, extended };

struct NewImage {
  u64 size_bytes = 0;  // multiple of 512
  u32 cluster_bits = 16;
  L2Entries l2_entries = L2Entries::standard;
  std::string backing_name;    // as it goes into the header; empty: none
  std::string backing_format;  // "qcow2" or "raw"

  Geometry geometry() const { return {cluster_bits, l2_entries == L2Entries::extended}; }
};

// 128 KiB clusters of 32 subclusters of 4 KiB: as many bytes of tables as with 64 KiB clusters.
inline constexpr u32 kOverlayClusterBits = 17;
inline NewImage overlay_image(u64 size_bytes, std::string backing_name,
                              std::string backing_format) {
  return {size_bytes, kOverlayClusterBits, L2Entries::extended, std::move(backing_name),
          std::move(backing_format)};
}

// Whether such an image can be.
Result<void> check_new_image(const NewImage& image);

// Writes the image to `fd`, an empty file; the caller syncs it. What is written is a header and one
// refcount for each cluster of the L1 table, which is left a hole: the same few pages for every
// size of disk. On an Error the file is garbage.
Result<void> create_image(const base::Fd& fd, const NewImage& image);

}  // namespace blockdev::qcow2
