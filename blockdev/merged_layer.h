// MergedLayer: one layer that stands for several that never change, so that finding a place costs
// the same however many there are.
//
// An index of 8 bytes for each 64 KiB of disk (1 MiB for 8 GiB) says of every region: zeros, or all
// in one file in one piece, or from which layer on it must be looked for. It starts empty and is
// filled where somebody reads, some regions at once, by the walk that Lookup does; a region that
// cannot be read is left to the walk each time, whose error says why. What the layers keep of their
// own tables is limited to as much again for all of them together.
//
// Beyond the ends of all layers everything is zero: nothing lies below a merged layer.
//
// Thread: as Layer. Two threads that fill the same region write the same.

#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "blockdev/layer.h"
#include "vmm/base/ranges.h"

namespace blockdev {

class MergedLayer final : public Layer {
 public:
  // REQUIRES: two layers or more, at most kMaxLayerCount, that nobody reads yet.
  // Fails when the host has no address space left.
  static Result<LayerPointer> create(LayerList layers);
  ~MergedLayer() override;

  static u64 index_bytes(u64 disk_bytes) {
    return base::divide_up(disk_bytes, kRegionBytes) * sizeof(Entry);
  }

  u64 size_bytes() const override { return size_bytes_; }
  Result<Extent> map(u64 offset, u64 length) const override;
  Result<void> read_computed(u64 offset, u64 length, IovecCursor& to,
                             ReadScratch& scratch) const override;

 private:
  static constexpr u64 kRegionBytes = 64 * base::kKiB;

  using Entry = std::atomic<u64>;

  MergedLayer(LayerList layers, Entry* index, u64 index_bytes);

  Extent extent_of(u64 entry, u64 offset) const;
  u64 entry_at(u64 offset) const;
  void fill(u64 offset) const;
  u64 make_entry(Lookup& lookup, u64 offset, u64 limit, u64& extents_left) const;
  u64 file_entry(const LocatedExtent& located) const;
  Result<LocatedExtent> walk(u64 entry, u64 offset, u64 length) const;

  const LayerList layers_;
  const u64 size_bytes_;
  Entry* const index_;  // anonymous memory that is there once it is touched
  const u64 index_bytes_;
  mutable std::array<std::atomic<int>, kMaxLayerCount> fds_;  // of files that the index names
};

// `layers` as one where that is of use, and its index not too large.
Result<LayerList> merge_layers(LayerList layers);

}  // namespace blockdev
