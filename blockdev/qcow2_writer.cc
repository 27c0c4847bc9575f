#include "blockdev/qcow2_writer.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "blockdev/qcow2_open.h"
#include "vmm/base/check.h"
#include "vmm/base/log.h"
#include "vmm/base/planted_fault.h"
#include "vmm/base/ranges.h"

namespace blockdev {

using qcow2::ClusterEntry;
using qcow2::HostRun;
using qcow2::kCopied;
using qcow2::kOffsetMask;
using qcow2::kZero;
using qcow2::L2Slice;
using qcow2::Reserved;

Result<std::shared_ptr<Qcow2Writer>> Qcow2Writer::create(base::Fd fd, Below below,
                                                         std::unique_ptr<IoEngine> engine) {
  WaitingIo io(std::move(engine));
  qcow2::OpenedTables opened = TRY(qcow2::open_for_writing(fd, io));
  engine = io.take_engine();
  if (opened.header.version == 2 && below == Below::layers) {
    return make_error(ErrorKind::unsupported,
                      "a version 2 image with a backing file cannot record zeros")
        .with_hint("qemu-img amend -o compat=1.1 FILE makes it version 3");
  }
  const qcow2::Geometry geometry(opened.header.cluster_bits, opened.header.has_extended_l2);
  qcow2::Tables tables =
      TRY(qcow2::Tables::create(geometry, opened.header.size_bytes, opened.l1, 0));
  std::shared_ptr<Qcow2Writer> writer(new Qcow2Writer(std::move(fd), below, std::move(engine),
                                                      std::move(opened), std::move(tables)));
  TRY(writer->clear_autoclear_bits());
  return writer;
}

// What they stand for is not kept up here, dirty bitmaps among it.
Result<void> Qcow2Writer::clear_autoclear_bits() {
  if (header_.version == 2 || header_.wire.autoclear_features == 0) return {};
  if ((header_.wire.autoclear_features & qcow2::kAutoclearBitmaps) != 0) {
    base::log(base::LogLevel::warning, "the dirty bitmaps of a qcow2 image are dropped");
  }
  std::fill_n(header_sector_.begin() + 88, 8, u8{0});
  int error = reader_.write(fd_.get(), 0, header_sector_);
  if (error == 0) error = reader_.sync(fd_.get());
  if (error != 0) return Error::from_errno(error, "clear autoclear bits");
  return {};
}

Qcow2Writer::Qcow2Writer(base::Fd fd, Below below, std::unique_ptr<IoEngine> engine,
                         qcow2::OpenedTables opened, qcow2::Tables tables)
    : fd_(std::move(fd)),
      header_(std::move(opened.header)),
      geometry_(tables.geometry()),
      below_(below),
      file_bytes_at_open_(opened.file_bytes),
      size_bytes_(header_.size_bytes),
      reader_(std::move(engine)),
      tables_(std::move(tables)),
      refcounts_(header_.cluster_bits, header_.wire.refcount_order,
                 std::move(opened.refcount_table)),
      allocator_(header_.cluster_bits, refcounts_, std::move(opened.metadata), opened.start,
                 {header_.wire.refcount_table_offset, header_.wire.refcount_table_clusters}),
      header_sector_(opened.header_sector),
      l1_offset_(header_.wire.l1_table_offset) {}

u64 Qcow2Writer::cluster_end(u64 offset) const {
  return base::align_down(offset, geometry_.cluster_bytes()) + geometry_.cluster_bytes();
}

// What is written as a whole: compressed clusters have no subclusters.
u64 Qcow2Writer::unit_bytes(const ClusterEntry& entry) const {
  return entry.is_compressed() ? geometry_.cluster_bytes() : geometry_.subcluster_bytes();
}

WriteStep Qcow2Writer::begin_write(ByteRange range, WriteKind kind, WriteTicket& ticket,
                                   Waker& waker) {
  if (condition_.load(std::memory_order_relaxed) != Condition::good) {
    return {.kind = StepKind::fail, .status = BlockStatus::io_error};
  }
  if (kind == WriteKind::data && !tables_.evicts()) {
    const WriteStep step = step_in_place(range);
    if (step.length_bytes > 0) return step;
  }
  while (true) {
    Attempt attempt;
    {
      // Each time: an attempt may have gone another way before it missed something.
      ticket = {.kind = kind};
      base::MutexLock lock(mutex_);
      attempt = kind == WriteKind::data ? begin_data(range, ticket, waker)
                                        : begin_zero(range, kind, ticket, waker);
    }
    if (attempt.missing.kind == Missing::Kind::nothing) return attempt.step;
    const Result<void> fetched = fetch(attempt.missing);
    if (!fetched) {
      base::log(base::LogLevel::error, "disk: write failed: {}", fetched.error().message());
      return {.kind = StepKind::fail, .status = BlockStatus::io_error};
    }
  }
}

// Without the lock. Nothing: the front of the range is not all there, or was not checked yet.
WriteStep Qcow2Writer::step_in_place(ByteRange range) {
  const L2Slice* const slice = tables_.find(tables_.slice_number(range.offset));
  if (slice == nullptr || !slice->is_checked.load(std::memory_order_acquire)) return {};
  const u64 length = std::min(range.length, slice_end(range.offset) - range.offset);
  const Result<Extent> extent = extent_in(*slice, range.offset, length);
  if (!extent || extent->kind != ExtentKind::file) return {};
  return {.kind = StepKind::in_place,
          .length_bytes = extent->length_bytes,
          .file_offset = extent->file_offset};
}

Qcow2Writer::Attempt Qcow2Writer::begin_data(ByteRange range, WriteTicket& ticket, Waker& waker) {
  if (tables_.has_too_many_dirty()) return wait_for_flush(waker);
  range.length = std::min(range.length, slice_end(range.offset) - range.offset);
  Place place;
  Attempt found = find_place(range.offset, place);
  if (found.missing.kind != Missing::Kind::nothing || found.step.kind == StepKind::fail) {
    return found;
  }
  const WriteStep in_place = step_in_place(range);
  if (in_place.length_bytes > 0) return {.step = in_place};
  const u64 start = base::align_down(range.offset, place.unit);
  const bool has_other = overlapping({start, place.unit}) != nullptr;
  if (has_other && !base::planted("write-does-not-wait")) return wait_for_other(waker);
  const bool has_host = place.entry.host_offset() != 0 && !place.entry.is_compressed();
  return has_host || place.shared != nullptr ? allocate_existing(range, place, ticket)
                                             : allocate_new(range, place, ticket);
}

// The host cluster is there, in the tables or reserved by another write to the same cluster.
Qcow2Writer::Attempt Qcow2Writer::allocate_existing(ByteRange range, const Place& place,
                                                    WriteTicket& ticket) {
  const u64 cluster_start = base::align_down(range.offset, geometry_.cluster_bytes());
  const u64 start = base::align_down(range.offset, place.unit);
  const u64 end = std::min(range.offset + range.length, cluster_end(range.offset));
  u64 covered_end = start + place.unit;
  // Up to what is there already, or another has.
  while (covered_end < end) {
    const Extent next =
        qcow2::extent_in_cluster(geometry_, place.entry, covered_end - cluster_start);
    if (next.kind == ExtentKind::file) break;
    if (overlapping({covered_end, place.unit}) != nullptr) break;
    covered_end += place.unit;
  }
  u64 host = place.entry.host_offset();
  if (place.shared != nullptr) {
    host = place.shared->file_offset + cluster_start - place.shared->covered.offset;
    ticket.host = place.shared->host;
    ticket.has_reserved = true;
  }
  ticket.covered = {start, covered_end - start};
  ticket.file_offset = host + start - cluster_start;
  start_ticket(ticket, place);
  return {.step = {.kind = StepKind::allocate,
                   .length_bytes = std::min(end, covered_end) - range.offset,
                   .file_offset = ticket.file_offset,
                   .covered = ticket.covered,
                   .host = ticket.host}};
}

Qcow2Writer::Attempt Qcow2Writer::allocate_new(ByteRange range, const Place& place,
                                               WriteTicket& ticket) {
  const u64 cluster = geometry_.cluster_bytes();
  const u64 cluster_start = base::align_down(range.offset, cluster);
  HostRun run;
  const Reserved reserved = allocator_.reserve(count_without_host(range, place), run);
  if (reserved != Reserved::yes) return failed_reservation(reserved);
  if (allocator_.take_prepared()) need_.store(FlushNeed::now, std::memory_order_relaxed);
  const u64 end = std::min(range.offset + range.length, cluster_start + run.count * cluster);
  const u64 start = base::align_down(range.offset, place.unit);
  ticket.covered = {start, base::align_up(end, place.unit) - start};
  ticket.file_offset = (run.cluster << geometry_.cluster_bits()) + start - cluster_start;
  ticket.host = run.host;
  ticket.has_reserved = true;
  start_ticket(ticket, place);
  return {.step = {.kind = StepKind::allocate,
                   .length_bytes = end - range.offset,
                   .file_offset = ticket.file_offset,
                   .covered = ticket.covered,
                   .host = ticket.host}};
}

// How many clusters from the front of the range on need a host cluster and are nobody's.
u64 Qcow2Writer::count_without_host(ByteRange range, const Place& place) {
  u64 count = 1;
  if (place.entry.is_compressed()) return count;
  const u64 cluster = geometry_.cluster_bytes();
  const u64 end = range.offset + range.length;
  for (u64 at = cluster_end(range.offset); at < end; at += cluster) {
    const Result<ClusterEntry> entry = entry_in(*place.slice, at);
    if (!entry || entry->is_compressed() || entry->host_offset() != 0) break;
    if (overlapping({at, cluster}) != nullptr) break;
    ++count;
  }
  return count;
}

Qcow2Writer::Attempt Qcow2Writer::failed_reservation(Reserved result) {
  if (result == Reserved::needs_block) {
    return {.missing = {Missing::Kind::block, allocator_.missing_block()}};
  }
  if (result == Reserved::overlap) {
    set_corrupt("a cluster that its refcounts call free holds metadata");
  }
  return {.step = {.kind = StepKind::fail, .status = BlockStatus::io_error}};
}

void Qcow2Writer::start_ticket(WriteTicket& ticket, const Place& place) {
  ++place.slice->pins;
  in_flight_.push_back(&ticket);
  if (base::planted("publish-early") && ticket.kind == WriteKind::data) publish(ticket);
}

const WriteTicket* Qcow2Writer::overlapping(ByteRange range) const {
  for (const WriteTicket* ticket : in_flight_) {
    const ByteRange& other = ticket->covered;
    if (base::overlaps(range.offset, range.length, other.offset, other.length)) return ticket;
  }
  return nullptr;
}

Qcow2Writer::Attempt Qcow2Writer::wait_for_other(Waker& waker) {
  const std::shared_ptr<Waker> kept = waker.shared_from_this();
  if (std::ranges::find(waiters_, kept) == waiters_.end()) waiters_.push_back(kept);
  return {.step = {.kind = StepKind::wait}};
}

// Until slices are clean again. Each flush that fails ends one write: with a host that is full for
// good nothing could be drained else.
Qcow2Writer::Attempt Qcow2Writer::wait_for_flush(Waker& waker) {
  if (const int error = std::exchange(refusal_, 0); error != 0) {
    return {.step = {.kind = StepKind::fail, .status = status_of_errno(error)}};
  }
  is_flush_waited_for_ = true;
  need_.store(FlushNeed::now, std::memory_order_relaxed);
  return wait_for_other(waker);
}

void Qcow2Writer::wake_waiters() {
  std::vector<std::shared_ptr<Waker>> woken;
  {
    base::MutexLock lock(mutex_);
    woken.swap(waiters_);
  }
  for (const auto& waker : woken) waker->wake();
}

// The cluster at `offset`, in a slice that may be changed.
Qcow2Writer::Attempt Qcow2Writer::find_place(u64 offset, Place& place) {
  Attempt found = writable_slice(offset, place.slice);
  if (found.missing.kind != Missing::Kind::nothing || found.step.kind == StepKind::fail) {
    return found;
  }
  const Result<ClusterEntry> entry = entry_in(*place.slice, offset);
  CHECK(entry);  // the slice was checked
  place.entry = *entry;
  place.unit = unit_bytes(place.entry);
  if (place.entry.host_offset() != 0 || !geometry_.has_extended_l2()) return {};
  const u64 cluster_start = base::align_down(offset, geometry_.cluster_bytes());
  for (const WriteTicket* ticket : in_flight_) {
    const ByteRange& other = ticket->covered;
    if (ticket->has_reserved &&
        base::overlaps(cluster_start, geometry_.cluster_bytes(), other.offset, other.length)) {
      place.shared = ticket;
    }
  }
  return {};
}

Qcow2Writer::Attempt Qcow2Writer::writable_slice(u64 offset, L2Slice*& slice) {
  const u64 number = tables_.slice_number(offset);
  const u64 l1_index = geometry_.l1_index(offset);
  if (tables_.l1_entry(l1_index) == 0) {
    Attempt added = add_table(l1_index);
    if (added.missing.kind != Missing::Kind::nothing || added.step.kind == StepKind::fail) {
      return added;
    }
  }
  slice = tables_.find(number);
  if (slice == nullptr && (tables_.l1_entry(l1_index) & qcow2::kNewTable) != 0) {
    slice = &tables_.insert(number, {});
    slice->is_checked.store(true, std::memory_order_release);
  }
  if (slice == nullptr) return {.missing = {Missing::Kind::slice, number}};
  slice->was_used = true;
  if (!slice->is_checked.load(std::memory_order_relaxed)) return check_slice(*slice);
  return {};
}

Qcow2Writer::Attempt Qcow2Writer::add_table(u64 l1_index) {
  HostRun run;
  const Reserved reserved = allocator_.reserve(1, run);
  if (reserved != Reserved::yes) return failed_reservation(reserved);
  allocator_.add_metadata(run.cluster, 1);
  const u64 offset = run.cluster << geometry_.cluster_bits();
  tables_.set_l1_entry(l1_index, offset | kCopied | qcow2::kNewTable);
  tables_.dirty_l1_indices().push_back(l1_index);
  note_change();
  return {};
}

Qcow2Writer::Attempt Qcow2Writer::check_slice(L2Slice& slice) {
  const u64 first = slice.number * tables_.slice_disk_bytes();
  for (u64& at = slice.checked_disk_bytes; at < tables_.slice_disk_bytes();
       at += geometry_.cluster_bytes()) {
    const Result<ClusterEntry> entry = entry_in(slice, first + at);
    if (!entry) {
      set_corrupt(entry.error().message());
      return {.step = {.kind = StepKind::fail, .status = BlockStatus::io_error}};
    }
    const u64 cluster = entry->host_offset() >> geometry_.cluster_bits();
    if (entry->is_compressed() || cluster == 0) continue;
    const u64 block = refcounts_.block_of(cluster);
    if (refcounts_.block_offset(block) != 0 && !refcounts_.is_loaded(block)) {
      return {.missing = {Missing::Kind::block, block}};
    }
    if (is_shared(*entry)) {
      if (!std::exchange(is_shared_told_, true)) {
        base::log(
            base::LogLevel::error,
            "disk: write failed: L2 entry {:#018x} shares its cluster with another; convert the "
            "image into a new one to write it",
            entry->entry);
      }
      return {.step = {.kind = StepKind::fail, .status = BlockStatus::io_error}};
    }
    if (!is_entry_sound(*entry)) {
      set_corrupt(
          fmt::format("L2 entry {:#018x} points to a cluster that is not its own", entry->entry));
      return {.step = {.kind = StepKind::fail, .status = BlockStatus::io_error}};
    }
  }
  slice.is_checked.store(true, std::memory_order_release);
  return {};
}

// Sound, but not to be written in place: so a repair leaves a cluster that two entries lead to.
bool Qcow2Writer::is_shared(const ClusterEntry& entry) {
  const u64 cluster = entry.host_offset() >> geometry_.cluster_bits();
  return (entry.entry & kCopied) == 0 && refcounts_.get(cluster) > 1 &&
         !allocator_.is_metadata(cluster, 1);
}

bool Qcow2Writer::is_entry_sound(const ClusterEntry& entry) {
  const u64 cluster = entry.host_offset() >> geometry_.cluster_bits();
  const u64 end = std::max(allocator_.end_cluster(),
                           base::divide_up(file_bytes_at_open_, geometry_.cluster_bytes()));
  return (entry.entry & kCopied) != 0 && cluster < end && refcounts_.get(cluster) == 1 &&
         !allocator_.is_metadata(cluster, 1);
}

void Qcow2Writer::end_write(WriteTicket& ticket, int error_number) {
  std::vector<std::shared_ptr<Waker>> woken;
  {
    base::MutexLock lock(mutex_);
    std::erase(in_flight_, &ticket);
    L2Slice* const slice = tables_.find(tables_.slice_number(ticket.covered.offset));
    --slice->pins;
    if (ticket.kind == WriteKind::data) {
      if (error_number == 0) {
        publish(ticket);
      } else if (ticket.has_reserved) {
        abandon(ticket);
      }
    }
    woken.swap(waiters_);
  }
  for (const auto& waker : woken) waker->wake();
}

// C4b: the data is there, now it may be seen.
void Qcow2Writer::publish(const WriteTicket& ticket) {
  const u64 cluster = geometry_.cluster_bytes();
  const u64 end = ticket.covered.offset + ticket.covered.length;
  for (u64 at = base::align_down(ticket.covered.offset, cluster); at < end; at += cluster) {
    publish_cluster(ticket, at);
  }
  note_change();
}

void Qcow2Writer::publish_cluster(const WriteTicket& ticket, u64 cluster_offset) {
  L2Slice& slice = *tables_.find(tables_.slice_number(cluster_offset));
  const qcow2::Tables::RawEntry old = tables_.read(slice, cluster_offset);
  const ClusterEntry entry{old.entry, old.bitmap};
  if (entry.is_compressed()) free_later(entry);
  const u64 host = ticket.file_offset + cluster_offset - ticket.covered.offset;
  u64 bitmap = 0;
  if (geometry_.has_extended_l2()) {
    const u64 mask = subcluster_mask(cluster_offset, ticket.covered);
    bitmap = (old.bitmap & ~(mask << 32)) | mask;
  }
  tables_.write(slice, cluster_offset, {host | kCopied, bitmap});
}

u32 Qcow2Writer::subcluster_mask(u64 cluster_offset, ByteRange covered) const {
  const u64 unit = geometry_.subcluster_bytes();
  const u64 end =
      std::min(covered.offset + covered.length, cluster_offset + geometry_.cluster_bytes());
  const u64 first = std::max(covered.offset, cluster_offset);
  const u64 count = (end - first) / unit;
  return static_cast<u32>(((u64{1} << count) - 1) << (first - cluster_offset) / unit);
}

// The write failed: what it reserved goes back, unless another write uses the cluster too. What was
// fresh may hold a part of the data now.
void Qcow2Writer::abandon(const WriteTicket& ticket) {
  const u64 cluster = geometry_.cluster_bytes();
  const u64 end = ticket.covered.offset + ticket.covered.length;
  for (u64 at = base::align_down(ticket.covered.offset, cluster); at < end; at += cluster) {
    const L2Slice& slice = *tables_.find(tables_.slice_number(at));
    const ClusterEntry entry{tables_.read(slice, at).entry, 0};
    bool is_used = !entry.is_compressed() && entry.host_offset() != 0;
    for (WriteTicket* other : in_flight_) {
      if (!base::overlaps(at, cluster, other->covered.offset, other->covered.length)) continue;
      other->host = HostState::used;
      is_used = true;
    }
    if (is_used) continue;
    const u64 host = ticket.file_offset + at - ticket.covered.offset;
    allocator_.give_back(host >> geometry_.cluster_bits());
  }
}

// Each host cluster that a compressed one touches was counted once for it.
void Qcow2Writer::free_later(const ClusterEntry& entry) {
  const qcow2::CompressedRange range = qcow2::compressed_range(geometry_, entry.entry);
  const u64 last = (range.offset + range.bytes - 1) >> geometry_.cluster_bits();
  for (u64 at = range.offset >> geometry_.cluster_bits(); at <= last; ++at) {
    pending_frees_.push_back(at);
  }
}

void Qcow2Writer::note_change() {
  if (flush_need() == FlushNeed::none) {
    need_.store(FlushNeed::some_time, std::memory_order_relaxed);
  }
}

void Qcow2Writer::set_corrupt(std::string_view reason) const {
  if (condition_.exchange(Condition::corrupt) != Condition::good) return;
  base::log(base::LogLevel::error,
            "a qcow2 image is damaged and is not written any more: {}; quicksave image check -r "
            "all FILE repairs what it can",
            reason);
  need_.store(FlushNeed::now, std::memory_order_relaxed);
}

}  // namespace blockdev
