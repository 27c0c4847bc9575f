#include "blockdev/merged_layer.h"

#include <sys/mman.h>

#include <algorithm>

#include "blockdev/block_backend.h"
#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev {
namespace {

// How far one read fills the index ahead of itself (as far as a 4 KiB piece of an L2 table goes),
// and how many extents it looks at on the way, for images that are in very small pieces.
constexpr u64 kFillBytes = 32 * base::kMiB;
constexpr u64 kFillExtents = 1024;

// Of an index: a disk of 1 TiB. A guest may fill it by reading one sector here and there.
constexpr u64 kMaxIndexBytes = 128 * base::kMiB;

// An entry: two bits of kind, 54 bits of the offset in the file in sectors, 8 bits of depth.
enum class EntryKind : u64 { unknown, zero, file, walk };
constexpr u64 kDepthShift = 56;
constexpr u64 kMaxSector = (u64{1} << 54) - 1;

EntryKind kind_of(u64 entry) { return static_cast<EntryKind>(entry & 3); }
u64 depth_of(u64 entry) { return entry >> kDepthShift; }
u64 file_offset_of(u64 entry) { return (entry >> 2 & kMaxSector) * kSectorBytes; }
u64 compose(EntryKind kind, u64 depth, u64 file_offset = 0) {
  return depth << kDepthShift | file_offset / kSectorBytes << 2 | static_cast<u64>(kind);
}

}  // namespace

Result<LayerPointer> MergedLayer::create(LayerList layers) {
  CHECK(layers.size() >= 2 && layers.size() <= kMaxLayerCount);
  const u64 size = layers.front()->size_bytes();
  const u64 index_bytes = MergedLayer::index_bytes(size);
  void* const index = ::mmap(nullptr, index_bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (index == MAP_FAILED) return errno_error("index of {} images", layers.size());
  for (const LayerPointer& layer : layers) layer->limit_cache(index_bytes / layers.size());
  return LayerPointer(new MergedLayer(std::move(layers), static_cast<Entry*>(index), index_bytes));
}

MergedLayer::MergedLayer(LayerList layers, Entry* index, u64 index_bytes)
    : layers_(std::move(layers)),
      size_bytes_(layers_.front()->size_bytes()),
      index_(index),
      index_bytes_(index_bytes) {
  for (std::atomic<int>& fd : fds_) fd.store(-1, std::memory_order_relaxed);
}

MergedLayer::~MergedLayer() { ::munmap(index_, index_bytes_); }

Result<Extent> MergedLayer::map(u64 offset, u64 length) const {
  CHECK(offset < size_bytes_ && length > 0);
  const u64 entry = entry_at(offset);
  if (kind_of(entry) == EntryKind::walk) {
    const u64 region_end = base::align_down(offset, kRegionBytes) + kRegionBytes;
    return TRY(walk(entry, offset, std::min(length, region_end - offset))).extent;
  }
  Extent whole = extent_of(entry, offset);
  while (whole.length_bytes < length && offset + whole.length_bytes < size_bytes_) {
    const u64 next_offset = offset + whole.length_bytes;
    const u64 next_entry = entry_at(next_offset);
    if (kind_of(next_entry) != kind_of(entry)) break;
    const Extent next = extent_of(next_entry, next_offset);
    const bool goes_on =
        whole.kind == ExtentKind::zero ||
        (next.fd == whole.fd && next.file_offset == whole.file_offset + whole.length_bytes);
    if (!goes_on) break;
    whole.length_bytes += next.length_bytes;
  }
  whole.length_bytes = std::min(whole.length_bytes, length);
  return whole;
}

// To the end of the region. REQUIRES: the entry is no walk.
Extent MergedLayer::extent_of(u64 entry, u64 offset) const {
  const u64 within = offset % kRegionBytes;
  Extent extent{.kind = ExtentKind::zero, .length_bytes = kRegionBytes - within};
  if (kind_of(entry) == EntryKind::file) {
    extent.kind = ExtentKind::file;
    extent.fd = fds_[depth_of(entry)].load(std::memory_order_relaxed);
    extent.file_offset = file_offset_of(entry) + within;
  }
  return extent;
}

// The acquire is for fds_: what an entry names was stored before it.
u64 MergedLayer::entry_at(u64 offset) const {
  const Entry& slot = index_[offset / kRegionBytes];
  const u64 entry = slot.load(std::memory_order_acquire);
  if (kind_of(entry) != EntryKind::unknown) return entry;
  fill(offset);
  return slot.load(std::memory_order_acquire);
}

// At least the region of `offset`.
void MergedLayer::fill(u64 offset) const {
  const u64 begin = base::align_down(offset, kRegionBytes);
  const u64 end = std::min(base::align_down(offset, kFillBytes) + kFillBytes, size_bytes_);
  Lookup lookup(layers_);
  u64 extents_left = kFillExtents;
  for (u64 at = begin; at < end && (at == begin || extents_left > 0); at += kRegionBytes) {
    const u64 entry = make_entry(lookup, at, end, extents_left);
    index_[at / kRegionBytes].store(entry, std::memory_order_release);
  }
}

// Asks as far as `limit`: what a layer lacks there it is not asked for again.
u64 MergedLayer::make_entry(Lookup& lookup, u64 offset, u64 limit, u64& extents_left) const {
  const u64 end = std::min(offset + kRegionBytes, size_bytes_);
  u64 least_depth = layers_.size() - 1;
  for (u64 at = offset; at < end;) {
    Result<LocatedExtent> located = lookup.at(at, limit - at);
    if (!located) return compose(EntryKind::walk, 0);
    if (extents_left > 0) --extents_left;
    Extent& extent = located->extent;
    extent.length_bytes = std::min(extent.length_bytes, end - at);
    if (at == offset && extent.length_bytes == end - at) {
      if (extent.kind == ExtentKind::zero) return compose(EntryKind::zero, 0);
      if (extent.kind == ExtentKind::file) return file_entry(*located);
    }
    least_depth = std::min(least_depth, located->depth);
    at += extent.length_bytes;
  }
  return compose(EntryKind::walk, least_depth);
}

u64 MergedLayer::file_entry(const LocatedExtent& located) const {
  const Extent& extent = located.extent;
  const u64 depth = located.depth;
  int known = -1;
  const bool is_known =
      !fds_[depth].compare_exchange_strong(known, extent.fd, std::memory_order_relaxed);
  // A layer may keep its data in several files; the index knows one of each.
  const bool is_other = is_known && known != extent.fd;
  if (is_other || extent.file_offset % kSectorBytes != 0 ||
      extent.file_offset / kSectorBytes > kMaxSector) {
    return compose(EntryKind::walk, depth);
  }
  return compose(EntryKind::file, depth, extent.file_offset);
}

Result<LocatedExtent> MergedLayer::walk(u64 entry, u64 offset, u64 length) const {
  Lookup lookup(layers_);
  return lookup.at(offset, length, depth_of(entry));
}

Result<void> MergedLayer::read_computed(u64 offset, u64 length, IovecCursor& to,
                                        ReadScratch& scratch) const {
  while (length > 0) {
    const LocatedExtent located = TRY(walk(entry_at(offset), offset, length));
    CHECK(located.extent.kind == ExtentKind::computed);
    const u64 piece = located.extent.length_bytes;
    TRY(located.layer->read_computed(offset, piece, to, scratch));
    offset += piece;
    length -= piece;
  }
  return {};
}

Result<LayerList> merge_layers(LayerList layers) {
  if (layers.size() < 2) return layers;
  if (MergedLayer::index_bytes(layers.front()->size_bytes()) > kMaxIndexBytes) return layers;
  return LayerList{TRY(MergedLayer::create(std::move(layers)))};
}

}  // namespace blockdev
