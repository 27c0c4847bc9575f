#include "blockdev/qcow2_tables.h"

#include <algorithm>
#include <new>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

constexpr u64 kMaxSliceBytes = 4096;
constexpr u32 kResidentClusterBits = 16;

u64 swapped(u64 word) {
  static_assert(std::endian::native == std::endian::little);
  return __builtin_bswap64(word);
}

// Atomics that are zero without being written: memory that a mapping has not touched costs nothing.
template <class T>
std::atomic<T>* zeroed_atomics(const base::Mapping& memory) {
  static_assert(sizeof(std::atomic<T>) == sizeof(T) && std::atomic<T>::is_always_lock_free);
  return std::launder(reinterpret_cast<std::atomic<T>*>(memory.data()));
}

}  // namespace

Tables::Tables(const Geometry& geometry)
    : geometry_(geometry),
      slice_bytes_(std::min(geometry.cluster_bytes(), kMaxSliceBytes)),
      entries_per_slice_(slice_bytes_ / geometry.entry_bytes()),
      evicts_(geometry.cluster_bits() < kResidentClusterBits) {}

Result<Tables> Tables::create(const Geometry& geometry, u64 disk_bytes, std::span<const u64> l1,
                              u64 l1_capacity) {
  Tables tables(geometry);
  TRY(tables.resize(disk_bytes, std::max<u64>(l1_capacity, l1.size())));
  for (u64 i = 0; i < l1.size(); ++i) {
    if (l1[i] != 0) tables.l1_[i].store(l1[i], std::memory_order_relaxed);
  }
  return tables;
}

Result<void> Tables::resize(u64 disk_bytes, u64 l1_count) {
  const u64 slice_count = base::divide_up(disk_bytes, slice_disk_bytes());
  base::Mapping l1 = TRY(base::Mapping::anonymous(std::max<u64>(1, l1_count) * sizeof(u64)));
  base::Mapping directory =
      TRY(base::Mapping::anonymous(std::max<u64>(1, slice_count) * sizeof(L2Slice*)));
  auto* const l1_words = zeroed_atomics<u64>(l1);
  for (u64 i = 0; i < std::min(l1_count_, l1_count); ++i) {
    const u64 entry = l1_entry(i);
    if (entry != 0) l1_words[i].store(entry, std::memory_order_relaxed);
  }
  auto* const pointers = zeroed_atomics<L2Slice*>(directory);
  for (const auto& slice : slices_) {
    if (slice->number < slice_count) pointers[slice->number].store(slice.get());
  }
  l1_memory_ = std::move(l1);
  l1_ = l1_words;
  l1_count_ = l1_count;
  directory_memory_ = std::move(directory);
  directory_ = pointers;
  return {};
}

Tables::RawEntry Tables::read(const L2Slice& slice, u64 offset) const {
  const u64 index = geometry_.l2_index(offset) % entries_per_slice_;
  if (!geometry_.has_extended_l2()) {
    return {swapped(slice.words[index].load(std::memory_order_acquire)), 0};
  }
  while (true) {
    const u32 before = slice.sequence.load(std::memory_order_acquire);
    const RawEntry entry{swapped(slice.words[2 * index].load(std::memory_order_acquire)),
                         swapped(slice.words[2 * index + 1].load(std::memory_order_acquire))};
    // Pairs with the release stores of write(): the words are loaded before this.
    if (before % 2 == 0 && slice.sequence.load(std::memory_order_relaxed) == before) return entry;
  }
}

void Tables::write(L2Slice& slice, u64 offset, RawEntry entry) {
  const u64 index = geometry_.l2_index(offset) % entries_per_slice_;
  mark_dirty(slice);
  if (!geometry_.has_extended_l2()) {
    slice.words[index].store(swapped(entry.entry), std::memory_order_release);
    return;
  }
  const u32 before = slice.sequence.load(std::memory_order_relaxed);
  slice.sequence.store(before + 1, std::memory_order_relaxed);
  slice.words[2 * index].store(swapped(entry.entry), std::memory_order_release);
  slice.words[2 * index + 1].store(swapped(entry.bitmap), std::memory_order_release);
  slice.sequence.store(before + 2, std::memory_order_release);
}

void Tables::mark_dirty(L2Slice& slice) {
  if (slice.is_dirty) return;
  slice.is_dirty = true;
  dirty_slices_.push_back(&slice);
}

void Tables::set_l1_entry(u64 l1_index, u64 entry) {
  l1_[l1_index].store(entry, std::memory_order_release);
}

L2Slice& Tables::insert(u64 slice_number, std::span<const u64> words) {
  if (evicts_ && slices_.size() >= kMaxSlices) evict_one();
  const u64 word_count = slice_bytes_ / sizeof(u64);
  auto slice = std::make_unique<L2Slice>(slice_number, word_count);
  for (u64 i = 0; i < words.size(); ++i) slice->words[i].store(words[i], std::memory_order_relaxed);
  CHECK(find(slice_number) == nullptr);
  directory_[slice_number].store(slice.get(), std::memory_order_release);
  slices_.push_back(std::move(slice));
  return *slices_.back();
}

// CLOCK. When all are dirty or pinned there are more than kMaxSlices for a while.
void Tables::evict_one() {
  for (u64 i = 0; i < 2 * slices_.size(); ++i) {
    hand_ = (hand_ + 1) % slices_.size();
    L2Slice& slice = *slices_[hand_];
    if (slice.is_dirty || slice.pins > 0) continue;
    if (std::exchange(slice.was_used, false)) continue;
    directory_[slice.number].store(nullptr, std::memory_order_release);
    slices_[hand_] = std::move(slices_.back());
    slices_.pop_back();
    return;
  }
}

}  // namespace blockdev::qcow2
