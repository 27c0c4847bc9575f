// Making the disk in a Qcow2Writer larger.

#include <algorithm>
#include <cstring>

#include "blockdev/qcow2_writer.h"
#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev {

using qcow2::HostRun;
using qcow2::Reserved;

// A larger disk may need a larger L1 table. It is written behind everything else; the header then
// says its place and its length in one sector (I6).
Result<void> Qcow2Writer::resize(u64 size_bytes, WaitingIo& io) {
  if (condition_.load() != Condition::good) {
    return make_error(ErrorKind::failed, "the image is not written any more");
  }
  if (size_bytes < size_bytes_) {
    return make_error(ErrorKind::unsupported, "a qcow2 image in use is not made smaller")
        .with_hint("quicksave image resize --shrink FILE while nobody uses it");
  }
  if (size_bytes > kMaxDiskBytes || !base::is_aligned(size_bytes, kSectorBytes)) {
    return make_error(ErrorKind::usage, "a disk of {} bytes (a multiple of {}, at most {})",
                      size_bytes, kSectorBytes, kMaxDiskBytes);
  }
  const u64 l1_count = base::divide_up(size_bytes, geometry_.bytes_per_l2_table());
  if (l1_count * sizeof(be64) > qcow2::kMaxL1Bytes) {
    return make_error(ErrorKind::unsupported,
                      "an L1 table of {} entries (at most {}): the clusters are too small for a "
                      "disk of {} bytes",
                      l1_count, qcow2::kMaxL1Bytes / sizeof(be64), size_bytes);
  }
  if (l1_count > tables_.l1_count()) TRY(move_l1(l1_count, io));
  base::MutexLock lock(mutex_);
  size_bytes_ = size_bytes;
  return tables_.resize(size_bytes, std::max(l1_count, tables_.l1_count()));
}

Result<void> Qcow2Writer::record_size(WaitingIo& io) {
  int error = flush(io, FlushReason::background);
  if (error == 0) {
    const be64 wire_size = size_bytes_;
    std::memcpy(&header_sector_[24], &wire_size, sizeof wire_size);
    error = write_header(io);
  }
  if (error == 0) error = barrier(io);
  if (error != 0) return Error::from_errno(error, "resize a qcow2 image");
  return {};
}

Result<void> Qcow2Writer::move_l1(u64 l1_count, WaitingIo& io) {
  const HostRun old_l1{
      l1_offset_ >> geometry_.cluster_bits(),
      base::divide_up(tables_.l1_count() * sizeof(be64), geometry_.cluster_bytes())};
  const u64 l1_offset = TRY(write_larger_l1(l1_count, io));
  // Makes the refcounts of the new table durable, and the table.
  int error = flush(io, FlushReason::background);
  if (error != 0) return Error::from_errno(error, "resize a qcow2 image");
  const be32 wire_count = static_cast<u32>(l1_count);
  const be64 wire_offset = l1_offset;
  std::memcpy(&header_sector_[36], &wire_count, sizeof wire_count);
  std::memcpy(&header_sector_[40], &wire_offset, sizeof wire_offset);
  error = write_header(io);
  if (error == 0) error = barrier(io);
  if (error != 0) return Error::from_errno(error, "resize a qcow2 image");
  base::MutexLock lock(mutex_);
  allocator_.remove_metadata(old_l1.cluster, old_l1.count);
  for (u64 i = 0; i < old_l1.count; ++i) pending_frees_.push_back(old_l1.cluster + i);
  note_change();
  l1_offset_ = l1_offset;
  return {};
}

// What the tables say must be in the file before their table is copied: an L1 entry leads to no
// table that is not there.
Result<u64> Qcow2Writer::write_larger_l1(u64 l1_count, WaitingIo& io) {
  if (const int error = flush(io, FlushReason::background); error != 0) {
    return Error::from_errno(error, "resize a qcow2 image");
  }
  const u64 clusters = base::divide_up(l1_count * sizeof(be64), geometry_.cluster_bytes());
  HostRun run;
  while (true) {
    Reserved reserved = Reserved::yes;
    {
      base::MutexLock lock(mutex_);
      reserved = allocator_.reserve_all(clusters, run);
      if (reserved == Reserved::yes) allocator_.add_metadata(run.cluster, clusters);
    }
    if (reserved == Reserved::yes) break;
    if (reserved != Reserved::needs_block) {
      return make_error(ErrorKind::corrupt, "no room for a larger L1 table");
    }
    u64 block = 0;
    {
      base::MutexLock lock(mutex_);
      block = allocator_.missing_block();
    }
    TRY(fetch_block(block));
  }
  std::vector<be64> words((clusters << geometry_.cluster_bits()) / sizeof(be64));
  for (u64 i = 0; i < tables_.l1_count(); ++i) {
    CHECK((tables_.l1_entry(i) & qcow2::kNewTable) == 0);
    words[i] = tables_.l1_entry(i);
  }
  const u64 offset = run.cluster << geometry_.cluster_bits();
  const int error = io.write(fd_.get(), offset,
                             {reinterpret_cast<u8*>(words.data()), words.size() * sizeof(be64)});
  if (error != 0) return Error::from_errno(error, "write a larger L1 table");
  base::MutexLock lock(mutex_);
  note_change();
  return offset;
}

}  // namespace blockdev
