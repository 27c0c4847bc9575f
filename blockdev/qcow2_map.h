// The mapping of a qcow2 image as pure functions: where a guest offset stands in the tables, and
// what an entry of a table means. No I/O, no memory of its own.

#pragma once

#include "blockdev/layer.h"
#include "blockdev/qcow2_format.h"
#include "vmm/base/result.h"

namespace blockdev::qcow2 {

class Geometry final {
 public:
  Geometry(u32 cluster_bits, bool has_extended_l2)
      : cluster_bits_(cluster_bits), has_extended_l2_(has_extended_l2) {}

  u32 cluster_bits() const { return cluster_bits_; }
  bool has_extended_l2() const { return has_extended_l2_; }
  u64 cluster_bytes() const { return u64{1} << cluster_bits_; }
  u64 entry_bytes() const { return has_extended_l2_ ? 16 : 8; }
  u64 entries_per_l2_table() const { return cluster_bytes() / entry_bytes(); }
  u64 bytes_per_l2_table() const { return entries_per_l2_table() << cluster_bits_; }  // of the disk
  u64 subcluster_bytes() const { return has_extended_l2_ ? cluster_bytes() / 32 : cluster_bytes(); }

  u64 l1_index(u64 offset) const { return offset / bytes_per_l2_table(); }
  u64 l2_index(u64 offset) const { return (offset >> cluster_bits_) % entries_per_l2_table(); }

 private:
  u32 cluster_bits_;
  bool has_extended_l2_;
};

// An L2 entry that passed all checks.
struct ClusterEntry {
  u64 entry = 0;
  u64 bitmap = 0;  // of a standard L2 entry: 0

  bool is_compressed() const { return (entry & kCompressed) != 0; }
  u64 host_offset() const { return entry & kOffsetMask; }
};

// Reserved bits, alignment, contradictions: what reference/qcow2.md 1.6.7 and 1.7 refuse.
Result<ClusterEntry> check_entry(const Geometry& geometry, u32 version, u64 entry, u64 bitmap);
// The L2 table's offset; 0: none.
Result<u64> check_l1_entry(const Geometry& geometry, u64 entry);

// What the cluster says of `within` (an offset in it): the extent reaches to the end of the run of
// subclusters of one kind, at most to the cluster's end. Its `fd` is not set.
Extent extent_in_cluster(const Geometry& geometry, const ClusterEntry& entry, u64 within);

struct CompressedRange {
  u64 offset = 0;
  u64 bytes = 0;
};
CompressedRange compressed_range(const Geometry& geometry, u64 entry);

}  // namespace blockdev::qcow2
