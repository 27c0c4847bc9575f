#include "blockdev/qcow2_map.h"

#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

Error bad_entry(u64 entry, std::string_view why) {
  return make_error(ErrorKind::corrupt, "L2 entry {:#018x}: {}", entry, why);
}

ExtentKind subcluster_kind(const Geometry& geometry, const ClusterEntry& entry, u64 index) {
  if (!geometry.has_extended_l2()) {
    if ((entry.entry & kZero) != 0) return ExtentKind::zero;
    return entry.host_offset() != 0 ? ExtentKind::file : ExtentKind::below;
  }
  if ((entry.bitmap >> (32 + index) & 1) != 0) return ExtentKind::zero;
  return (entry.bitmap >> index & 1) != 0 ? ExtentKind::file : ExtentKind::below;
}

}  // namespace

Result<u64> check_l1_entry(const Geometry& geometry, u64 entry) {
  if ((entry & kL1Reserved) != 0) {
    return make_error(ErrorKind::corrupt, "L1 entry {:#018x}: reserved bits are set", entry);
  }
  const u64 offset = entry & kOffsetMask;
  if (!base::is_aligned(offset, geometry.cluster_bytes())) {
    return make_error(ErrorKind::corrupt,
                      "L1 entry {:#018x}: not at a multiple of the cluster size", entry);
  }
  return offset;
}

// COMPRESSED is tested first: in a compressed descriptor bit 0 belongs to the offset.
Result<ClusterEntry> check_entry(const Geometry& geometry, u32 version, u64 entry, u64 bitmap) {
  if ((entry & kCompressed) != 0) {
    if (bitmap != 0) return bad_entry(entry, "a compressed cluster has no subclusters");
    if (compressed_range(geometry, entry).offset >> 56 != 0) {
      return bad_entry(entry, "compressed data beyond 2^56");
    }
    return ClusterEntry{entry, 0};
  }
  if ((entry & kL2Reserved) != 0) return bad_entry(entry, "reserved bits are set");
  if (!base::is_aligned(entry & kOffsetMask, geometry.cluster_bytes())) {
    return bad_entry(entry, "not at a multiple of the cluster size");
  }
  if ((entry & kZero) != 0 && (version == 2 || geometry.has_extended_l2())) {
    return bad_entry(entry, "bit 0 is set, which has no meaning in this image");
  }
  if (geometry.has_extended_l2()) {
    if ((bitmap & bitmap >> 32) != 0) {
      return bad_entry(entry, "a subcluster is both allocated and zero");
    }
    if ((bitmap & 0xffffffff) != 0 && (entry & kOffsetMask) == 0) {
      return bad_entry(entry, "subclusters are allocated in no cluster");
    }
  }
  return ClusterEntry{entry, bitmap};
}

Extent extent_in_cluster(const Geometry& geometry, const ClusterEntry& entry, u64 within) {
  const u64 cluster = geometry.cluster_bytes();
  if (entry.is_compressed()) {
    return {.kind = ExtentKind::computed, .length_bytes = cluster - within};
  }
  const u64 unit = geometry.subcluster_bytes();
  const ExtentKind kind = subcluster_kind(geometry, entry, within / unit);
  u64 end = base::align_down(within, unit) + unit;
  while (end < cluster && subcluster_kind(geometry, entry, end / unit) == kind) end += unit;
  return {.kind = kind,
          .length_bytes = end - within,
          .file_offset = kind == ExtentKind::file ? entry.host_offset() + within : 0};
}

CompressedRange compressed_range(const Geometry& geometry, u64 entry) {
  const u32 sector_bits = geometry.cluster_bits() - 8;
  const u32 shift = 62 - sector_bits;
  const u64 offset = entry & ((u64{1} << shift) - 1);
  const u64 more_sectors = entry >> shift & ((u64{1} << sector_bits) - 1);
  return {offset, (more_sectors + 1) * 512 - offset % 512};
}

}  // namespace blockdev::qcow2
