// Tables: the L1 and L2 tables of an image that is written, as they are now. The file follows.
//
// The L1 table is in memory. L2 tables are kept in slices of 4 KiB (a whole table where clusters
// are smaller) behind a directory with one pointer for each slice of the disk. Entries are atomic,
// so a reader needs no lock: it loads the pointer, then the entry. An extended entry is two words;
// a sequence number in the slice tells a reader that it has seen half of a change.
//
// With clusters of 64 KiB and more a slice stays for good: all tables together take 1 MiB for each
// 8 GiB of disk. Smaller clusters have larger tables, so slices that are clean and not pinned go
// when there are too many, and readers take the lock too: they cannot hold on to a slice otherwise.
//
// Words are kept as they lie in the file, so that a flush copies them.
//
// Invariant: a slice that differs from the file is dirty; a table that the file does not have yet
// is marked new in its L1 entry, and its slices that do not exist are zeros. Thread: find(),
// read(), l1_entry() from any thread, where evicts() with the image's lock held; all else with it.

#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "blockdev/qcow2_map.h"
#include "vmm/base/fd.h"

namespace blockdev::qcow2 {

// In an L1 entry in memory only: bit 0 is reserved in the file.
inline constexpr u64 kNewTable = 1;

class L2Slice final {
 public:
  L2Slice(u64 slice_number, u64 word_count)
      : number(slice_number), words(std::make_unique<std::atomic<u64>[]>(word_count)) {}

  const u64 number;
  const std::unique_ptr<std::atomic<u64>[]> words;  // big-endian
  std::atomic<u32> sequence{0};                     // odd while an extended entry changes
  // Its entries were compared with the refcounts: what they point to may be written.
  std::atomic<bool> is_checked{false};
  u64 checked_disk_bytes = 0;  // so far: its entries may need more refcount blocks than are kept
  bool is_dirty = false;
  bool was_used = false;
  u32 pins = 0;
};

class Tables final {
 public:
  // `l1`: as in the file, checked.
  static Result<Tables> create(const Geometry& geometry, u64 disk_bytes, std::span<const u64> l1,
                               u64 l1_capacity);

  const Geometry& geometry() const { return geometry_; }
  bool evicts() const { return evicts_; }
  u64 slice_bytes() const { return slice_bytes_; }
  u64 slice_disk_bytes() const { return entries_per_slice_ << geometry_.cluster_bits(); }
  u64 slice_number(u64 offset) const { return offset / slice_disk_bytes(); }
  u64 slices_per_table() const { return geometry_.cluster_bytes() / slice_bytes_; }

  // Null: not in memory.
  L2Slice* find(u64 slice_number) const {
    return directory_[slice_number].load(std::memory_order_acquire);
  }
  struct RawEntry {
    u64 entry = 0;
    u64 bitmap = 0;
  };
  RawEntry read(const L2Slice& slice, u64 offset) const;
  void write(L2Slice& slice, u64 offset, RawEntry entry);

  // With kNewTable.
  u64 l1_entry(u64 l1_index) const { return l1_[l1_index].load(std::memory_order_acquire); }
  u64 l1_count() const { return l1_count_; }
  void set_l1_entry(u64 l1_index, u64 entry);

  // `words` is copied; empty: zeros. A slice that is clean may go for it.
  L2Slice& insert(u64 slice_number, std::span<const u64> words);
  // Of more, a flush makes some clean.
  bool has_too_many_dirty() const { return evicts_ && dirty_slices_.size() > kMaxSlices / 2; }

  // Both are cleared by the flush that takes them.
  std::vector<L2Slice*>& dirty_slices() { return dirty_slices_; }
  std::vector<u64>& dirty_l1_indices() { return dirty_l1_; }
  void mark_dirty(L2Slice& slice);

  // REQUIRES: nobody reads.
  Result<void> resize(u64 disk_bytes, u64 l1_count);

 private:
  // 4 MiB, or less with clusters of less than 4 KiB.
  static constexpr u64 kMaxSlices = 1024;

  explicit Tables(const Geometry& geometry);
  void evict_one();

  Geometry geometry_;
  u64 slice_bytes_;
  u64 entries_per_slice_;
  bool evicts_;
  u64 l1_count_ = 0;
  base::Mapping l1_memory_;         // address space; what is used of it costs memory
  base::Mapping directory_memory_;  // the same
  std::atomic<u64>* l1_ = nullptr;
  std::atomic<L2Slice*>* directory_ = nullptr;
  std::vector<std::unique_ptr<L2Slice>> slices_;
  u64 hand_ = 0;  // of eviction
  std::vector<L2Slice*> dirty_slices_;
  std::vector<u64> dirty_l1_;
};

}  // namespace blockdev::qcow2
