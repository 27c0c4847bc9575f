#include "blockdev/qcow2_image.h"

#include <algorithm>

#include "blockdev/qcow2_decompress.h"
#include "vmm/base/check.h"
#include "vmm/base/log.h"
#include "vmm/base/ranges.h"

namespace blockdev {
namespace {

using qcow2::ClusterEntry;
using qcow2::Slice;

// All L2 tables of a disk with 64 KiB clusters take 1 MiB for each 8 GiB (128 KiB and extended L2:
// the same). Smaller clusters have larger tables, of which twice as much is kept.
u64 cache_limit(u64 disk_bytes) {
  constexpr u64 kDiskBytesPerCacheByte = 4096;
  return std::clamp<u64>(disk_bytes / kDiskBytesPerCacheByte, 64 * base::kKiB, 32 * base::kMiB);
}

}  // namespace

Result<std::shared_ptr<Qcow2Image>> Qcow2Image::create(base::Fd fd) {
  const u64 file_bytes = TRY(base::file_size(fd));
  qcow2::Header header = TRY(qcow2::read_header(fd, file_bytes));
  std::vector<be64> l1(header.l1_count);
  TRY_CONTEXT(base::read_exactly(fd, {reinterpret_cast<u8*>(l1.data()), l1.size() * sizeof(be64)},
                                 header.l1_offset),
              "L1 table");
  return std::shared_ptr<Qcow2Image>(
      new Qcow2Image(std::move(fd), file_bytes, std::move(header), std::move(l1)));
}

Qcow2Image::Qcow2Image(base::Fd fd, u64 file_bytes, qcow2::Header header, std::vector<be64> l1)
    : fd_(std::move(fd)),
      file_bytes_(file_bytes),
      header_(std::move(header)),
      geometry_(header_.cluster_bits, header_.has_extended_l2),
      l1_(std::move(l1)),
      cache_(fd_, std::min<u64>(header_.cluster_bytes(), 4096), cache_limit(header_.size_bytes)) {}

void Qcow2Image::limit_cache(u64 bytes) const {
  if (header_.cluster_bytes() < 64 * base::kKiB) return;
  cache_.set_limit(std::min(bytes, cache_limit(header_.size_bytes)));
}

Result<Extent> Qcow2Image::map(u64 offset, u64 length) const {
  CHECK(offset < header_.size_bytes && length > 0);
  const std::shared_ptr<const Slice> slice = TRY(slice_of(offset));
  if (slice == nullptr) {
    const u64 table = geometry_.bytes_per_l2_table();
    return Extent{.kind = ExtentKind::below,
                  .length_bytes = std::min(length, table - offset % table)};
  }
  const u64 slice_disk_bytes = entries_per_slice() << geometry_.cluster_bits();
  length = std::min(length, slice_disk_bytes - offset % slice_disk_bytes);
  Extent whole = TRY(extent_at(*slice, offset));
  // Compressed clusters are not merged: each is one decompression.
  while (whole.kind != ExtentKind::computed && whole.length_bytes < length) {
    const Result<Extent> next = extent_at(*slice, offset + whole.length_bytes);
    // A bad entry ends the extent before it and is reported when it is read itself.
    if (!next || next->kind != whole.kind) break;
    if (whole.kind == ExtentKind::file &&
        next->file_offset != whole.file_offset + whole.length_bytes) {
      break;
    }
    whole.length_bytes += next->length_bytes;
  }
  whole.length_bytes = std::min(whole.length_bytes, length);
  return whole;
}

Result<std::shared_ptr<const Slice>> Qcow2Image::slice_of(u64 offset) const {
  const u64 table = TRY(qcow2::check_l1_entry(geometry_, l1_[geometry_.l1_index(offset)]));
  if (table == 0) return std::shared_ptr<const Slice>();
  // A file may end in the middle of its last table; what is missing reads as zeros, as of data
  // (reference/qcow2.md 1.6.7).
  if (table >= file_bytes_) {
    return make_error(ErrorKind::corrupt, "L2 table at {:#x} outside file (size {:#x})", table,
                      file_bytes_);
  }
  const u64 within = geometry_.l2_index(offset) * geometry_.entry_bytes();
  return cache_.get(table + base::align_down(within, cache_.slice_bytes()));
}

Result<ClusterEntry> Qcow2Image::entry_in(const Slice& slice, u64 offset) const {
  const u64 index = geometry_.l2_index(offset) % entries_per_slice();
  if (!geometry_.has_extended_l2()) {
    return qcow2::check_entry(geometry_, header_.version, slice[index], 0);
  }
  return qcow2::check_entry(geometry_, header_.version, slice[2 * index], slice[2 * index + 1]);
}

Result<u64> Qcow2Image::preallocated_at(u64 offset) const {
  const std::shared_ptr<const Slice> slice = TRY(slice_of(offset));
  if (slice == nullptr) return u64{0};
  const ClusterEntry entry = TRY(entry_in(*slice, offset));
  if (entry.is_compressed() || entry.host_offset() == 0) return u64{0};
  return entry.host_offset() + offset % geometry_.cluster_bytes();
}

Result<Extent> Qcow2Image::extent_at(const Slice& slice, u64 offset) const {
  const ClusterEntry entry = TRY(entry_in(slice, offset));
  Extent extent = qcow2::extent_in_cluster(geometry_, entry, offset % geometry_.cluster_bytes());
  if (extent.kind == ExtentKind::file) {
    extent.fd = fd_.get();
    if (entry.host_offset() >= file_bytes_) warn_of_truncation(entry.host_offset());
  }
  return extent;
}

Result<void> Qcow2Image::read_computed(u64 offset, u64 length, IovecCursor& to,
                                       ReadScratch& scratch) const {
  const u64 cluster = geometry_.cluster_bytes();
  const u64 cluster_offset = base::align_down(offset, cluster);
  CHECK(base::contains(cluster, offset - cluster_offset, length));
  if (scratch.owner != identity_ || scratch.cluster_offset != cluster_offset) {
    const std::shared_ptr<const Slice> slice = TRY(slice_of(offset));
    CHECK(slice != nullptr);
    scratch.owner = nullptr;
    const ClusterEntry entry = TRY(entry_in(*slice, offset));
    TRY(decompress(entry, scratch));
    scratch.owner = identity_;
    scratch.cluster_offset = cluster_offset;
  }
  to.copy_in(scratch.plain.data() + (offset - cluster_offset), length);
  return {};
}

Result<void> Qcow2Image::decompress(const ClusterEntry& entry, ReadScratch& scratch) const {
  const qcow2::CompressedRange range = qcow2::compressed_range(geometry_, entry.entry);
  if (range.offset >= file_bytes_) {
    return make_error(ErrorKind::corrupt, "compressed cluster at {:#x} outside file (size {:#x})",
                      range.offset, file_bytes_);
  }
  // The size is in whole sectors, so the last one may reach past the end of the file.
  scratch.packed.resize(std::min(range.bytes, file_bytes_ - range.offset));
  scratch.plain.resize(geometry_.cluster_bytes());
  TRY(base::read_exactly(fd_, scratch.packed, range.offset));
  if (scratch.decompressor == nullptr) {
    scratch.decompressor = std::make_shared<qcow2::Decompressor>();
  }
  return scratch.decompressor->run(header_.compression, scratch.packed, scratch.plain);
}

void Qcow2Image::warn_of_truncation(u64 file_offset) const {
  if (was_truncation_said_.exchange(true, std::memory_order_relaxed)) return;
  base::log(
      base::LogLevel::warning,
      "a qcow2 image has a cluster at {:#x} past the end of its file ({:#x}): truncated? Such "
      "clusters read as zeros",
      file_offset, file_bytes_);
}

}  // namespace blockdev
