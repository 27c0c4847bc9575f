// LayerLayout: where everything lies in a layer file, known before the first byte is written.
//
//   header | refcount table | refcount blocks | L1 table | L2 tables | data clusters
//
// All in whole clusters, each with refcount 1. The refcount structures describe themselves, so
// their size is found by repeating until it does not grow.

#pragma once

#include <algorithm>
#include <vector>

#include "vmm/base/ranges.h"
#include "vmm/base/types.h"

namespace blockdev {

struct LayerLayout {
  // The strict profile (reference/qcow2.md section 5): 128 KiB clusters of 32 4 KiB subclusters.
  static constexpr u32 kClusterBits = 17;
  static constexpr u64 kClusterBytes = u64{1} << kClusterBits;
  static constexpr u64 kSubclusterBytes = kClusterBytes / 32;
  static constexpr u64 kEntriesPerL2 = kClusterBytes / 16;
  static constexpr u64 kRefcountsPerBlock = kClusterBytes / 2;
  static constexpr u64 kBlocksPerTableCluster = kClusterBytes / 8;

  u64 refcount_table_clusters = 1;
  u64 refcount_block_clusters = 1;
  u64 l1_entries = 0;
  u64 l1_clusters = 0;
  std::vector<u64> l2_indices;  // L1 entries that have an L2 table, ascending
  u64 data_clusters = 0;

  u64 refcount_table_offset() const { return kClusterBytes; }
  u64 refcount_blocks_offset() const {
    return refcount_table_offset() + refcount_table_clusters * kClusterBytes;
  }
  u64 l1_offset() const {
    return refcount_blocks_offset() + refcount_block_clusters * kClusterBytes;
  }
  u64 l2_offset() const { return l1_offset() + l1_clusters * kClusterBytes; }
  u64 data_offset() const { return l2_offset() + l2_indices.size() * kClusterBytes; }
  u64 total_clusters() const { return data_offset() / kClusterBytes + data_clusters; }

  // Call when the fields about L1, L2 and data are set.
  void size_refcounts() {
    while (true) {
      const u64 blocks = base::divide_up(total_clusters(), kRefcountsPerBlock);
      const u64 tables = base::divide_up(blocks, kBlocksPerTableCluster);
      if (blocks <= refcount_block_clusters && tables <= refcount_table_clusters) return;
      refcount_block_clusters = std::max(blocks, refcount_block_clusters);
      refcount_table_clusters = std::max(tables, refcount_table_clusters);
    }
  }
};

}  // namespace blockdev
