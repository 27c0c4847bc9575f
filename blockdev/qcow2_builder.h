// Builder: a new qcow2 image written once, in the order of the disk.
//
//   header | L1 table | data clusters and, behind the last cluster of each, L2 tables |
//   refcount blocks | refcount table
//
// Clusters are taken one after the other, so that the refcounts are known when the end is: 1 for
// every cluster up to there. The header is written last, after all else was synced: a file whose
// writing was interrupted is no image.
//
// Memory: the L1 table, one L2 table, one refcount block, a buffer for writes.
// Thread: one.

#pragma once

#include <span>
#include <vector>

#include "blockdev/qcow2_create.h"

namespace blockdev::qcow2 {

class Builder final {
 public:
  // `fd` is of an empty file and outlives the builder.
  static Result<Builder> create(const base::Fd& fd, const NewImage& image);

  const Geometry& geometry() const { return geometry_; }

  // What a cluster holds, one bit for each of its subclusters: 0..31 data, 32..63 zero. A cluster
  // of an image with standard entries is one subcluster, bits 0 and 32. Of `content`, a whole
  // cluster, only the subclusters with data are written.
  // REQUIRES: `cluster` (counted on the disk) is larger than in the call before; some bit is set.
  Result<void> add_cluster(u64 cluster, u64 bitmap, std::span<const u8> content);

  // Writes the tables and the header. The caller syncs the file.
  Result<void> finish();

 private:
  Builder(const base::Fd& fd, const NewImage& image);

  Result<void> write_data(u64 host_offset, u64 bitmap, std::span<const u8> content);
  Result<void> write(u64 offset, std::span<const u8> bytes);
  Result<void> write_out();
  Result<void> end_l2_table();
  Result<void> write_l1();
  Result<void> write_refcounts();
  Result<void> write_header();
  u64 take_clusters(u64 count);

  const base::Fd* fd_;
  NewImage image_;
  Geometry geometry_;
  u64 l1_entries_;
  std::vector<be64> l1_;  // up to the last one that is not 0
  std::vector<be64> l2_;  // of l2_index_; empty: nothing in it yet
  u64 l2_index_ = 0;      // in l1_
  u64 l1_offset_ = 0;
  u64 next_cluster_ = 1;  // behind the header
  u64 refcount_table_offset_ = 0;
  u64 refcount_table_clusters_ = 0;
  std::vector<u8> buffer_;  // not written yet
  u64 buffer_offset_ = 0;   // where it goes
};

}  // namespace blockdev::qcow2
