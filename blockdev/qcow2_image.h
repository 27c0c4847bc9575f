// Qcow2Image: one qcow2 file as a layer. What it does not hold is `below`; who that is, the image
// does not decide.
//
// Memory: the L1 table (8 bytes for each L2 table), and L2 tables in a bounded cache of at most
// 2 MiB for each 8 GiB of disk; nothing is proportional to what the header claims before the file
// was seen to hold it.
//
// Invariant: every entry of a table is checked each time it is used.
// Thread: all calls from any thread.

#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "blockdev/layer.h"
#include "blockdev/qcow2_cache.h"
#include "blockdev/qcow2_header.h"
#include "blockdev/qcow2_map.h"

namespace blockdev {

class Qcow2Image final : public Layer {
 public:
  static Result<std::shared_ptr<Qcow2Image>> create(base::Fd fd);

  u64 size_bytes() const override { return header_.size_bytes; }
  Result<Extent> map(u64 offset, u64 length) const override;
  Result<void> read_computed(u64 offset, u64 length, IovecCursor& to,
                             ReadScratch& scratch) const override;

  void limit_cache(u64 bytes) const override;

  const qcow2::Header& header() const { return header_; }
  // Where a cluster that reads as zeros is allocated all the same; 0: nowhere.
  Result<u64> preallocated_at(u64 offset) const;

 private:
  Qcow2Image(base::Fd fd, u64 file_bytes, qcow2::Header header, std::vector<be64> l1);

  // Null: the L2 table does not exist.
  Result<std::shared_ptr<const qcow2::Slice>> slice_of(u64 offset) const;
  Result<qcow2::ClusterEntry> entry_in(const qcow2::Slice& slice, u64 offset) const;
  Result<Extent> extent_at(const qcow2::Slice& slice, u64 offset) const;
  Result<void> decompress(const qcow2::ClusterEntry& entry, ReadScratch& scratch) const;
  u64 entries_per_slice() const { return cache_.slice_bytes() / geometry_.entry_bytes(); }
  void warn_of_truncation(u64 file_offset) const;

  const base::Fd fd_;
  const u64 file_bytes_;
  const qcow2::Header header_;
  const qcow2::Geometry geometry_;
  const std::vector<be64> l1_;
  // For ReadScratch, which keeps it alive: no other image has it while a scratch does.
  const std::shared_ptr<const void> identity_ = std::make_shared<char>();
  mutable qcow2::Cache cache_;
  mutable std::atomic<bool> was_truncation_said_{false};
};

}  // namespace blockdev
