#include "blockdev/qcow2_refcounts.h"

#include <algorithm>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {

Result<void> read_padded(const base::Fd& fd, u64 file_bytes, std::span<u8> out, u64 offset) {
  const u64 there = offset < file_bytes ? std::min<u64>(out.size(), file_bytes - offset) : 0;
  std::fill(out.begin() + static_cast<std::ptrdiff_t>(there), out.end(), u8{0});
  if (there > 0) TRY(base::read_exactly(fd, out.first(there), offset));
  return {};
}

// --- ReferenceCounts ---

ReferenceCounts::ReferenceCounts(u64 cluster_count, u64 maximum)
    : cluster_count_(cluster_count),
      // Nothing that fits into a file refers to one cluster more often than that.
      maximum_(static_cast<u32>(std::min<u64>(maximum, kStatedAsOne - 1))),
      pages_(cluster_count / kPageClusters + 2) {}

Result<ReferenceCounts::Added> ReferenceCounts::add(u64 cluster) {
  std::unique_ptr<Page>& page = pages_[cluster / kPageClusters];
  cluster_count_ = std::max(cluster_count_, cluster + 1);
  if (page == nullptr) {
    if (allocated_bytes_ + sizeof(Page) > kMaxBytes) {
      return make_error(ErrorKind::unsupported,
                        "so many clusters are in use that counting them takes more than {} MiB",
                        kMaxBytes / base::kMiB);
    }
    allocated_bytes_ += sizeof(Page);
    page = std::make_unique<Page>();
  }
  u32& count = (*page)[cluster % kPageClusters];
  if (count == maximum_) return Added::overflow;
  ++count;
  return Added::yes;
}

u64 ReferenceCounts::get(u64 cluster) const {
  if (cluster >= cluster_count_) return 0;
  const std::unique_ptr<Page>& page = pages_[cluster / kPageClusters];
  return page == nullptr ? 0 : (*page)[cluster % kPageClusters] & ~kStatedAsOne;
}

u64 ReferenceCounts::skip_unused(u64 cluster) const {
  if (cluster >= cluster_count_ || pages_[cluster / kPageClusters] != nullptr) return cluster;
  return base::align_down(cluster, kPageClusters) + kPageClusters;
}

void ReferenceCounts::note_stated_as_one(u64 cluster) {
  const std::unique_ptr<Page>& page = pages_[cluster / kPageClusters];
  if (page != nullptr) (*page)[cluster % kPageClusters] |= kStatedAsOne;
}

bool ReferenceCounts::is_stated_as_one(u64 cluster) const {
  const std::unique_ptr<Page>& page = pages_[cluster / kPageClusters];
  return page != nullptr && ((*page)[cluster % kPageClusters] & kStatedAsOne) != 0;
}

// --- StatedRefcounts ---

StatedRefcounts::StatedRefcounts(const base::Fd& fd, u64 file_bytes, const WireHeader& wire)
    : fd_(fd),
      file_bytes_(file_bytes),
      cluster_bits_(wire.cluster_bits),
      order_(wire.refcount_order),
      table_((u64{wire.refcount_table_clusters} << wire.cluster_bits) / sizeof(be64)) {}

Result<StatedRefcounts> StatedRefcounts::create(const base::Fd& fd, u64 file_bytes,
                                                const WireHeader& wire) {
  StatedRefcounts refcounts(fd, file_bytes, wire);
  TRY_CONTEXT(read_padded(fd, file_bytes,
                          {reinterpret_cast<u8*>(refcounts.table_.data()),
                           refcounts.table_.size() * sizeof(be64)},
                          wire.refcount_table_offset),
              "refcount table");
  return refcounts;
}

u64 StatedRefcounts::block_offset(u64 block_index) const {
  return block_index < table_.size() ? table_[block_index] & ~kRefcountTableReserved : 0;
}

bool StatedRefcounts::is_readable(u64 cluster) const {
  return base::is_aligned(block_offset(cluster / entries_per_block()), u64{1} << cluster_bits_);
}

Result<u64> StatedRefcounts::get(u64 cluster) const {
  const u64 offset = block_offset(cluster / entries_per_block());
  if (offset == 0) return u64{0};
  const u64 index = cluster % entries_per_block();
  u8 bytes[8];
  // The eight bytes that hold it, whatever its width.
  const u64 within = base::align_down((index << order_) / 8, sizeof bytes);
  TRY_CONTEXT(read_padded(fd_, file_bytes_, bytes, offset + within), "refcount block");
  return value_in(bytes, index % ((8 * sizeof bytes) >> order_));
}

Result<std::vector<u8>> StatedRefcounts::block(u64 block_index) const {
  std::vector<u8> bytes;
  const u64 offset = block_offset(block_index);
  if (offset == 0) return bytes;
  bytes.resize(u64{1} << cluster_bits_);
  TRY_CONTEXT(read_padded(fd_, file_bytes_, bytes, offset), "refcount block");
  return bytes;
}

// Narrower than a byte: the first entry is in the low bits.
u64 StatedRefcounts::value_in(std::span<const u8> bytes, u64 index) const {
  if (order_ < 3) {
    const u64 per_byte = u64{8} >> order_;
    const u64 shift = index % per_byte << order_;
    return bytes[index / per_byte] >> shift & maximum();
  }
  const u64 width = u64{1} << (order_ - 3);
  u64 value = 0;
  for (u64 i = 0; i < width; ++i) value = value << 8 | bytes[index * width + i];
  return value;
}

void StatedRefcounts::set_value_in(std::span<u8> bytes, u64 index, u64 value) const {
  CHECK(value <= maximum());
  if (order_ < 3) {
    const u64 per_byte = u64{8} >> order_;
    const u64 shift = index % per_byte << order_;
    u8& byte = bytes[index / per_byte];
    byte = static_cast<u8>((byte & ~(maximum() << shift)) | value << shift);
    return;
  }
  const u64 width = u64{1} << (order_ - 3);
  for (u64 i = 0; i < width; ++i) {
    bytes[index * width + i] = static_cast<u8>(value >> (8 * (width - 1 - i)));
  }
}

}  // namespace blockdev::qcow2
