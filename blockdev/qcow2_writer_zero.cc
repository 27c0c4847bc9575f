// Zeroing and discarding in a Qcow2Writer.
//
// Whole (sub)clusters change in the tables only, and keep the host cluster that they have; what the
// host is to get back is punched out of it before the request ends. At the edges of a range zeros
// are written, or, for a discard, nothing is done.

#include <algorithm>

#include "blockdev/qcow2_writer.h"
#include "vmm/base/check.h"
#include "vmm/base/planted_fault.h"
#include "vmm/base/ranges.h"

namespace blockdev {

using qcow2::ClusterEntry;
using qcow2::kCopied;
using qcow2::kZero;
using qcow2::L2Slice;

Qcow2Writer::Attempt Qcow2Writer::begin_zero(ByteRange range, WriteKind kind, WriteTicket& ticket,
                                             Waker& waker) {
  range.length = std::min(range.length, slice_end(range.offset) - range.offset);
  const bool has_table = tables_.l1_entry(geometry_.l1_index(range.offset)) != 0;
  if (!has_table && below_ == Below::nothing) return {.step = {.length_bytes = range.length}};
  if (tables_.has_too_many_dirty()) return wait_for_flush(waker);
  Place place;
  Attempt found = find_place(range.offset, place);
  if (found.missing.kind != Missing::Kind::nothing || found.step.kind == StepKind::fail) {
    return found;
  }
  if (header_.version == 2) return zero_without_flag(range, place, ticket, waker);
  const u64 end = range.offset + range.length;
  const u64 unit_end = base::align_down(range.offset, place.unit) + place.unit;
  const bool is_whole =
      base::is_aligned(range.offset, place.unit) && std::min(unit_end, size_bytes_) <= end;
  if (is_whole) return zero_run(range, place, ticket, waker);
  range.length = std::min(unit_end, end) - range.offset;
  if (kind == WriteKind::discard) return {.step = {.length_bytes = range.length}};
  return write_zeros(range, ticket, waker);
}

// As data: where it must be filled around, it becomes visible as any other write.
Qcow2Writer::Attempt Qcow2Writer::write_zeros(ByteRange range, WriteTicket& ticket, Waker& waker) {
  ticket.kind = WriteKind::data;
  return begin_data(range, ticket, waker);
}

// Version 2 has nothing below (create() refuses it), so what is not allocated is zero.
Qcow2Writer::Attempt Qcow2Writer::zero_without_flag(ByteRange range, const Place& place,
                                                    WriteTicket& ticket, Waker& waker) {
  const Result<Extent> extent = extent_in(*place.slice, range.offset, range.length);
  CHECK(extent);  // the slice was checked
  range.length = extent->length_bytes;
  if (extent->kind == ExtentKind::computed && ticket.kind != WriteKind::discard) {
    return write_zeros(range, ticket, waker);
  }
  if (extent->kind != ExtentKind::file) return {.step = {.length_bytes = range.length}};
  const bool keeps_space = ticket.kind == WriteKind::zeroes;
  return {.step = {.kind = keeps_space ? StepKind::in_place : StepKind::punch_in_place,
                   .length_bytes = range.length,
                   .file_offset = extent->file_offset}};
}

// Whole (sub)clusters, as far as nobody else has them and what is to be punched lies in one piece.
Qcow2Writer::Attempt Qcow2Writer::zero_run(ByteRange range, const Place& place, WriteTicket& ticket,
                                           Waker& waker) {
  const u64 unit = geometry_.subcluster_bytes();
  const u64 range_end = range.offset + range.length;
  const u64 end = range_end >= size_bytes_ ? base::align_up(range_end, unit)
                                           : base::align_down(range_end, unit);
  ByteRange punched;
  u64 at = range.offset;
  while (at < end) {
    const u64 stop = std::min(cluster_end(at), end);
    const Result<ClusterEntry> entry = entry_in(*place.slice, at);
    CHECK(entry);  // the slice was checked
    const bool is_cluster = base::is_aligned(at, geometry_.cluster_bytes()) &&
                            stop >= std::min(cluster_end(at), size_bytes_);
    if (entry->is_compressed() && !is_cluster) break;
    if (overlapping({at, stop - at}) != nullptr && !base::planted("discard-does-not-wait")) break;
    const u64 host = punched_offset(*entry, at, ticket.kind);
    const u64 expected = punched.length == 0 ? 0 : punched.offset + punched.length;
    if (at != range.offset && host != expected) break;
    zero_cluster(*place.slice, at, stop - at, *entry);
    if (host != 0) punched = {host - (at - range.offset), stop - range.offset};
    at = stop;
  }
  if (at == range.offset) return wait_for_other(waker);
  WriteStep step{.length_bytes = std::min(at, range_end) - range.offset};
  if (punched.length > 0) {
    ticket.covered = {range.offset, at - range.offset};
    start_ticket(ticket, place);
    step.kind = StepKind::punch;
    step.file_offset = punched.offset;
    step.covered = ticket.covered;
  }
  return {.step = step};
}

// 0: nothing.
u64 Qcow2Writer::punched_offset(const ClusterEntry& entry, u64 offset, WriteKind kind) const {
  if (kind == WriteKind::zeroes || entry.is_compressed() || entry.host_offset() == 0) return 0;
  return entry.host_offset() + offset % geometry_.cluster_bytes();
}

void Qcow2Writer::zero_cluster(L2Slice& slice, u64 offset, u64 length, ClusterEntry entry) {
  qcow2::Tables::RawEntry zeroed;
  if (entry.is_compressed()) {
    free_later(entry);
    entry = {};
  }
  const u64 host = entry.host_offset();
  if ((host == 0 && below_ == Below::nothing) || base::planted("discard-to-unallocated")) {
    // Not allocated is zero already. What was compressed becomes that.
  } else if (geometry_.has_extended_l2()) {
    const u64 mask =
        subcluster_mask(base::align_down(offset, geometry_.cluster_bytes()), {offset, length});
    zeroed = {entry.entry, (entry.bitmap & ~mask) | mask << 32};
  } else {
    zeroed = {host | kZero | (host != 0 ? kCopied : 0), 0};
  }
  const qcow2::Tables::RawEntry old = tables_.read(slice, offset);
  if (old.entry == zeroed.entry && old.bitmap == zeroed.bitmap) return;
  tables_.write(slice, offset, zeroed);
  note_change();
}

}  // namespace blockdev
