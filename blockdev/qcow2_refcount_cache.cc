#include "blockdev/qcow2_refcount_cache.h"

#include <algorithm>
#include <utility>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {

RefcountCache::RefcountCache(u32 cluster_bits, u32 refcount_order, std::vector<u64> table)
    : cluster_bits_(cluster_bits), order_(refcount_order), table_(std::move(table)) {
  blocks_.resize(table_.size());
}

u64 RefcountCache::piece_bytes() const { return std::min<u64>(u64{1} << cluster_bits_, 4096); }

void RefcountCache::insert(u64 block, std::vector<u8> bytes) {
  CHECK(block < table_.size() && table_[block] != 0 && blocks_[block] == nullptr);
  CHECK(bytes.size() == u64{1} << cluster_bits_);
  if ((loaded_.size() + 1) << cluster_bits_ > kMaxBytes) evict_one();
  auto loaded = std::make_unique<RefcountBlock>();
  loaded->index = block;
  loaded->bytes = std::move(bytes);
  loaded->dirty_pieces.resize(loaded->bytes.size() / piece_bytes());
  blocks_[block] = std::move(loaded);
  loaded_.push_back(block);
}

void RefcountCache::add_new(u64 block, u64 offset) {
  CHECK(block < table_.size() && table_[block] == 0);
  table_[block] = offset;
  insert(block, std::vector<u8>(u64{1} << cluster_bits_));
  blocks_[block]->is_new = true;
  new_blocks_.push_back(block);
}

u64 RefcountCache::get(u64 cluster) const {
  const u64 index = block_of(cluster);
  if (block_offset(index) == 0) return 0;
  CHECK(is_loaded(index));
  RefcountBlock& block = *blocks_[index];
  block.was_used = true;
  const u64 entry = cluster % clusters_per_block();
  if (order_ < 3) {
    const u64 bit = entry << order_;
    return block.bytes[bit / 8] >> bit % 8 & maximum();
  }
  u64 count = 0;
  const u64 width = u64{1} << (order_ - 3);
  for (u64 i = 0; i < width; ++i) count = count << 8 | block.bytes[entry * width + i];
  return count;
}

void RefcountCache::set(u64 cluster, u64 count) {
  CHECK(is_loaded(block_of(cluster)) && count <= maximum());
  RefcountBlock& block = *blocks_[block_of(cluster)];
  block.is_needed = true;
  const u64 entry = cluster % clusters_per_block();
  u64 at = 0;
  if (order_ < 3) {
    const u64 bit = entry << order_;
    at = bit / 8;
    const u64 mask = maximum() << bit % 8;
    block.bytes[at] = static_cast<u8>((block.bytes[at] & ~mask) | count << bit % 8);
  } else {
    const u64 width = u64{1} << (order_ - 3);
    at = entry * width;
    for (u64 i = 0; i < width; ++i) {
      block.bytes[at + i] = static_cast<u8>(count >> 8 * (width - 1 - i));
    }
  }
  mark_dirty(block, at / piece_bytes());
}

void RefcountCache::mark_dirty(RefcountBlock& block, u64 piece) {
  block.dirty_pieces[piece] = true;
  if (std::exchange(block.is_dirty, true)) return;
  dirty_blocks_.push_back(&block);
}

void RefcountCache::evict_one() {
  for (u64 i = 0; i < 2 * loaded_.size(); ++i) {
    hand_ = (hand_ + 1) % loaded_.size();
    RefcountBlock& block = *blocks_[loaded_[hand_]];
    if (block.is_dirty || block.is_new || block.pins > 0 || std::exchange(block.was_used, false))
      continue;
    blocks_[block.index] = nullptr;
    loaded_[hand_] = loaded_.back();
    loaded_.pop_back();
    return;
  }
}

}  // namespace blockdev::qcow2
