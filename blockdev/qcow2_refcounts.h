// The two sides that a check compares: the refcounts that an image states, and the references to
// each of its clusters that were counted.
//
// Thread: one.

#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "blockdev/qcow2_format.h"
#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace blockdev::qcow2 {

// Reads; what lies past the end of the file is zeros, as QEMU reads it.
Result<void> read_padded(const base::Fd& fd, u64 file_bytes, std::span<u8> out, u64 offset);

// How many references to each host cluster were seen.
//
// Memory: 4 bytes for each cluster of the stretches of 4096 clusters that have a reference, and 8
// bytes for each such stretch of the file; never more than kMaxBytes.
class ReferenceCounts final {
 public:
  // 8 TiB of clusters of 64 KiB.
  static constexpr u64 kMaxBytes = 512 * base::kMiB;

  // `maximum`: the largest count that the image can state.
  ReferenceCounts(u64 cluster_count, u64 maximum);

  enum class Added : u8 { yes, overflow };
  Result<Added> add(u64 cluster);
  u64 get(u64 cluster) const;
  // No cluster in the stretch around this one has a reference: the first one behind the stretch.
  // `cluster` itself if there is one.
  u64 skip_unused(u64 cluster) const;

  // What the image states, remembered for those that have a reference.
  void note_stated_as_one(u64 cluster);
  bool is_stated_as_one(u64 cluster) const;

  // One more than the cluster of the file's end if something reaches over it.
  u64 cluster_count() const { return cluster_count_; }

 private:
  static constexpr u64 kPageClusters = 4096;
  static constexpr u32 kStatedAsOne = u32{1} << 31;
  using Page = std::array<u32, kPageClusters>;

  u64 cluster_count_;
  u32 maximum_;
  u64 allocated_bytes_ = 0;
  std::vector<std::unique_ptr<Page>> pages_;  // null: no reference in it
};

// The refcounts as the image states them.
//
// Memory: the refcount table, at most 8 MiB.
class StatedRefcounts final {
 public:
  static Result<StatedRefcounts> create(const base::Fd& fd, u64 file_bytes, const WireHeader& wire);

  std::span<const be64> table() const { return table_; }
  u64 entries_per_block() const { return (u64{8} << cluster_bits_) >> order_; }
  u64 maximum() const { return order_ == 6 ? ~u64{0} : (u64{1} << (1 << order_)) - 1; }
  // Whether the block of this cluster lies where a block can lie.
  bool is_readable(u64 cluster) const;

  // REQUIRES: is_readable(cluster).
  Result<u64> get(u64 cluster) const;
  // The bytes of one block; empty if the image has no such block, which means zeros.
  // REQUIRES: is_readable() of its clusters.
  Result<std::vector<u8>> block(u64 block_index) const;
  bool has_block(u64 block_index) const { return block_offset(block_index) != 0; }
  u64 value_in(std::span<const u8> bytes, u64 index) const;
  // REQUIRES: value <= maximum().
  void set_value_in(std::span<u8> bytes, u64 index, u64 value) const;

 private:
  StatedRefcounts(const base::Fd& fd, u64 file_bytes, const WireHeader& wire);
  u64 block_offset(u64 block_index) const;

  const base::Fd& fd_;
  u64 file_bytes_;
  u32 cluster_bits_;
  u32 order_;
  std::vector<be64> table_;
};

}  // namespace blockdev::qcow2
