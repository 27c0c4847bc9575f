// What a Qcow2Writer holds, as its readers see it.

#include <algorithm>
#include <array>

#include "blockdev/qcow2_decompress.h"
#include "blockdev/qcow2_writer.h"
#include "vmm/base/check.h"
#include "vmm/base/planted_fault.h"
#include "vmm/base/ranges.h"

namespace blockdev {

using qcow2::ClusterEntry;
using qcow2::kOffsetMask;
using qcow2::L2Slice;

u64 Qcow2Writer::slice_end(u64 offset) const {
  return (tables_.slice_number(offset) + 1) * tables_.slice_disk_bytes();
}

Result<Extent> Qcow2Writer::map(u64 offset, u64 length) const {
  CHECK(offset < size_bytes_ && length > 0);
  length = std::min(length, slice_end(offset) - offset);
  while (true) {
    Found found;
    if (tables_.evicts()) {
      base::MutexLock lock(mutex_);
      found = find_slice(offset);
      if (found.slice != nullptr || !found.has_table) return map_found(found, offset, length);
    } else {
      found = find_slice(offset);
      if (found.slice != nullptr || !found.has_table) return map_found(found, offset, length);
    }
    TRY(fetch_slice(tables_.slice_number(offset)));
  }
}

Qcow2Writer::Found Qcow2Writer::find_slice(u64 offset) const {
  L2Slice* const slice = tables_.find(tables_.slice_number(offset));
  if (slice != nullptr) {
    if (tables_.evicts()) slice->was_used = true;
    return {slice, true};
  }
  const u64 l1_entry = tables_.l1_entry(geometry_.l1_index(offset));
  // A slice that a new table does not have in memory is zeros.
  return {nullptr, (l1_entry & qcow2::kNewTable) == 0 && l1_entry != 0};
}

Result<Extent> Qcow2Writer::map_found(const Found& found, u64 offset, u64 length) const {
  if (found.slice != nullptr) return extent_in(*found.slice, offset, length);
  return Extent{.kind = ExtentKind::below, .length_bytes = length};
}

Result<Extent> Qcow2Writer::extent_in(const L2Slice& slice, u64 offset, u64 length) const {
  const u64 cluster = geometry_.cluster_bytes();
  Extent whole =
      qcow2::extent_in_cluster(geometry_, TRY(entry_in(slice, offset)), offset % cluster);
  // Compressed clusters are not merged: each is one decompression.
  while (whole.kind != ExtentKind::computed && whole.length_bytes < length) {
    const u64 next_offset = offset + whole.length_bytes;
    const Result<ClusterEntry> entry = entry_in(slice, next_offset);
    // A bad entry ends the extent before it and is reported when it is read itself.
    if (!entry) break;
    const Extent next = qcow2::extent_in_cluster(geometry_, *entry, next_offset % cluster);
    const bool follows = whole.kind != ExtentKind::file ||
                         next.file_offset == whole.file_offset + whole.length_bytes;
    if (next.kind != whole.kind || !follows) break;
    whole.length_bytes += next.length_bytes;
  }
  whole.length_bytes = std::min(whole.length_bytes, length);
  if (whole.kind == ExtentKind::file) whole.fd = fd_.get();
  return whole;
}

Result<ClusterEntry> Qcow2Writer::entry_in(const L2Slice& slice, u64 offset) const {
  const qcow2::Tables::RawEntry raw = tables_.read(slice, offset);
  return qcow2::check_entry(geometry_, header_.version, raw.entry, raw.bitmap);
}

Result<ClusterEntry> Qcow2Writer::entry_at(u64 offset) const {
  while (true) {
    {
      base::MutexLock lock(mutex_);
      const Found found = find_slice(offset);
      if (found.slice != nullptr) return entry_in(*found.slice, offset);
      if (!found.has_table) return ClusterEntry{};
    }
    TRY(fetch_slice(tables_.slice_number(offset)));
  }
}

// Between map() and this the cluster may have been written, and what it was compressed to freed and
// used anew. So the entry is looked at again after the bytes were read: while it is the same, they
// were its.
Result<void> Qcow2Writer::read_computed(u64 offset, u64 length, IovecCursor& to,
                                        ReadScratch& scratch) const {
  const u64 cluster_offset = base::align_down(offset, geometry_.cluster_bytes());
  const u64 within = offset - cluster_offset;
  CHECK(base::contains(geometry_.cluster_bytes(), within, length));
  while (true) {
    const ClusterEntry entry = TRY(entry_at(offset));
    if (!entry.is_compressed()) return read_plain(entry, within, length, to);
    const bool is_kept = scratch.owner == identity_ && scratch.cluster_offset == cluster_offset &&
                         scratch.entry == entry.entry;
    if (!is_kept) {
      scratch.owner = nullptr;
      const Result<void> done = decompress(entry, scratch);
      const bool is_same = TRY(entry_at(offset)).entry == entry.entry;
      if (!is_same && !base::planted("no-second-look")) continue;
      if (!done) return done.error();
      scratch.owner = identity_;
      scratch.cluster_offset = cluster_offset;
      scratch.entry = entry.entry;
    }
    to.copy_in(scratch.plain.data() + within, length);
    return {};
  }
}

Result<void> Qcow2Writer::read_plain(const ClusterEntry& entry, u64 within, u64 length,
                                     IovecCursor& to) const {
  while (length > 0) {
    const Extent extent = qcow2::extent_in_cluster(geometry_, entry, within);
    const u64 piece = std::min(length, extent.length_bytes);
    if (extent.kind == ExtentKind::file) {
      std::vector<u8> bytes(piece);
      const int error = reader_.read(fd_.get(), extent.file_offset, bytes);
      if (error != 0) return Error::from_errno(error, "image file");
      to.copy_in(bytes.data(), piece);
    } else {
      to.fill_zero(piece);  // nothing turns a compressed cluster into what lies below
    }
    within += piece;
    length -= piece;
  }
  return {};
}

Result<void> Qcow2Writer::decompress(const ClusterEntry& entry, ReadScratch& scratch) const {
  const qcow2::CompressedRange range = qcow2::compressed_range(geometry_, entry.entry);
  if (range.offset >= file_bytes_at_open_) {
    return make_error(ErrorKind::corrupt, "compressed cluster at {:#x} outside file (size {:#x})",
                      range.offset, file_bytes_at_open_);
  }
  // The size is in whole sectors, so the last one may reach past the end of the file.
  scratch.packed.resize(std::min(range.bytes, file_bytes_at_open_ - range.offset));
  scratch.plain.resize(geometry_.cluster_bytes());
  const int error = reader_.read(fd_.get(), range.offset, scratch.packed);
  if (error != 0) return Error::from_errno(error, "image file");
  if (scratch.decompressor == nullptr) {
    scratch.decompressor = std::make_shared<qcow2::Decompressor>();
  }
  return scratch.decompressor->run(header_.compression, scratch.packed, scratch.plain);
}

Result<void> Qcow2Writer::fetch(const Missing& missing) const {
  return missing.kind == Missing::Kind::slice ? fetch_slice(missing.index)
                                              : fetch_block(missing.index);
}

// One thread reads, the others wait for it: two copies would not see each other's changes.
bool Qcow2Writer::begin_loading(const Missing& missing) const {
  const auto is_same = [&](const Missing& other) {
    return other.kind == missing.kind && other.index == missing.index;
  };
  while (std::ranges::any_of(loading_, is_same)) loaded_.wait(mutex_);
  const bool is_there = missing.kind == Missing::Kind::slice
                            ? tables_.find(missing.index) != nullptr
                            : refcounts_.is_loaded(missing.index);
  if (!is_there) loading_.push_back(missing);
  return !is_there;
}

void Qcow2Writer::end_loading(const Missing& missing) const {
  std::erase_if(loading_, [&](const Missing& other) {
    return other.kind == missing.kind && other.index == missing.index;
  });
  loaded_.notify_all();
}

Result<void> Qcow2Writer::fetch_slice(u64 number) const {
  const Missing missing{Missing::Kind::slice, number};
  u64 l1_entry = 0;
  {
    base::MutexLock lock(mutex_);
    l1_entry = tables_.l1_entry(number / tables_.slices_per_table());
    if ((l1_entry & qcow2::kNewTable) != 0 || !begin_loading(missing)) return {};
  }
  const u64 within = number % tables_.slices_per_table() * tables_.slice_bytes();
  const u64 offset = (l1_entry & kOffsetMask) + within;
  std::array<u64, 512> words;
  const std::span<u8> bytes(reinterpret_cast<u8*>(words.data()), tables_.slice_bytes());
  const int error = reader_.read(fd_.get(), offset, bytes);
  base::MutexLock lock(mutex_);
  end_loading(missing);
  if (error != 0) return Error::from_errno(error, fmt::format("L2 table near {:#x}", offset));
  tables_.insert(number, std::span(words).first(tables_.slice_bytes() / sizeof(u64)));
  return {};
}

Result<void> Qcow2Writer::fetch_block(u64 index) const {
  const Missing missing{Missing::Kind::block, index};
  u64 offset = 0;
  {
    base::MutexLock lock(mutex_);
    offset = refcounts_.block_offset(index);
    if (!begin_loading(missing)) return {};
  }
  std::vector<u8> bytes(geometry_.cluster_bytes());
  const int error = reader_.read(fd_.get(), offset, bytes);
  base::MutexLock lock(mutex_);
  end_loading(missing);
  if (error != 0) return Error::from_errno(error, fmt::format("refcount block at {:#x}", offset));
  refcounts_.insert(index, std::move(bytes));
  return {};
}

}  // namespace blockdev
