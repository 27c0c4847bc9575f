// RefcountCache: the refcounts of an image that is written, as they are now.
//
// The refcount table is in memory; blocks are read when first needed and kept, clean ones up to a
// limit. What a count becomes here the file learns with the next flush.
//
// Invariant: a block that the file's table does not lead to yet is marked new.
// Thread: one at a time (the image's lock).

#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "blockdev/qcow2_format.h"
#include "vmm/base/types.h"

namespace blockdev::qcow2 {

struct RefcountBlock {
  u64 index = 0;
  std::vector<u8> bytes;
  std::vector<bool> dirty_pieces;  // of RefcountCache::piece_bytes()
  bool is_dirty = false;
  bool is_new = false;
  bool is_needed = false;  // it counts something
  bool was_used = false;
  u32 pins = 0;
};

class RefcountCache final {
 public:
  // `table`: offsets of blocks as in the file, checked.
  RefcountCache(u32 cluster_bits, u32 refcount_order, std::vector<u64> table);

  u64 clusters_per_block() const { return (u64{8} << cluster_bits_) >> order_; }
  u64 block_of(u64 cluster) const { return cluster / clusters_per_block(); }
  u64 piece_bytes() const;
  u64 maximum() const { return order_ == 6 ? ~u64{0} : (u64{1} << (1 << order_)) - 1; }

  // 0: the image has no such block, all its counts are 0.
  u64 block_offset(u64 block) const { return block < table_.size() ? table_[block] : 0; }
  std::span<const u64> table() const { return table_; }
  void enlarge_table(u64 entries) {
    table_.resize(entries);
    blocks_.resize(entries);
  }

  bool is_loaded(u64 block) const { return block < blocks_.size() && blocks_[block] != nullptr; }
  // REQUIRES: block_offset() is not 0 and the block is not loaded.
  void insert(u64 block, std::vector<u8> bytes);
  // Makes a block of zeros at `offset`. REQUIRES: block_offset() is 0, within the table.
  void add_new(u64 block, u64 offset);

  // REQUIRES: the block of the cluster is loaded, or does not exist.
  u64 get(u64 cluster) const;
  // REQUIRES: the block of the cluster is loaded.
  void set(u64 cluster, u64 count);

  // All are cleared by the flush that takes them.
  std::vector<RefcountBlock*>& dirty_blocks() { return dirty_blocks_; }
  std::vector<u64>& new_blocks() { return new_blocks_; }
  RefcountBlock& block(u64 index) { return *blocks_[index]; }
  void mark_dirty(RefcountBlock& block, u64 piece);

 private:
  static constexpr u64 kMaxBytes = 16 * base::kMiB;

  void evict_one();

  u32 cluster_bits_;
  u32 order_;
  std::vector<u64> table_;
  std::vector<std::unique_ptr<RefcountBlock>> blocks_;
  std::vector<u64> loaded_;  // indices of blocks_, for eviction
  u64 hand_ = 0;
  std::vector<RefcountBlock*> dirty_blocks_;
  std::vector<u64> new_blocks_;
};

}  // namespace blockdev::qcow2
