#include "blockdev/qcow2_allocator.h"

#include <algorithm>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

constexpr u64 kMaxHostBytes = u64{1} << 56;  // what an L2 entry can say
constexpr u64 kMinClustersToPrepare = 4096;
constexpr u64 kMaxTableEntries = kMaxRefcountTableBytes / sizeof(be64);

}  // namespace

Allocator::Allocator(u32 cluster_bits, RefcountCache& refcounts, std::vector<u64> metadata,
                     Start start, TableMove table)
    : cluster_bits_(cluster_bits),
      refcounts_(refcounts),
      metadata_(std::move(metadata)),
      cursor_(start.cursor),
      fresh_cluster_(start.fresh_cluster),
      table_(table) {}

Reserved Allocator::reserve(u64 wanted, HostRun& run) {
  const Reserved given_back = reserve_given_back(run);
  if (given_back != Reserved::yes || run.count > 0) return given_back;
  while (true) {
    const Reserved result = ensure_block();
    if (result != Reserved::yes) return result;
    const u64 end = (refcounts_.block_of(cursor_) + 1) * refcounts_.clusters_per_block();
    cursor_ = skip_used(cursor_, end);
    if (cursor_ == end) continue;
    u64 limit = std::min(end, cursor_ + wanted);
    if (cursor_ < fresh_cluster_) limit = std::min(limit, fresh_cluster_);
    const u64 count = count_unused(cursor_, limit);
    if (is_metadata(cursor_, count)) return Reserved::overlap;
    take(cursor_, count, run);
    cursor_ += count;
    prepare_next_block();
    return Reserved::yes;
  }
}

// From the middle of a block on. Blocks of small clusters describe so little that they would come
// all the time; those are linked when they are needed.
void Allocator::prepare_next_block() {
  const u64 per_block = refcounts_.clusters_per_block();
  const u64 next = refcounts_.block_of(cursor_) + 1;
  if (per_block < kMinClustersToPrepare || cursor_ % per_block < per_block / 2) return;
  if (next >= refcounts_.table().size() || refcounts_.block_offset(next) != 0) return;
  if (refcounts_.get(cursor_) != 0) return;
  // What stands against it is found again when the block is needed.
  if (make_block_of(next * per_block) == Reserved::yes) has_prepared_ = true;
}

// Leaves `run` empty when there is nothing.
Reserved Allocator::reserve_given_back(HostRun& run) {
  run = {};
  if (!returned_.empty()) {
    run = {returned_.back(), 1, HostState::used};
    returned_.pop_back();
  } else if (!free_.empty()) {
    const u64 cluster = free_.back();
    if (!refcounts_.is_loaded(refcounts_.block_of(cluster))) {
      missing_block_ = refcounts_.block_of(cluster);
      return Reserved::needs_block;
    }
    if (is_metadata(cluster, 1)) return Reserved::overlap;
    free_.pop_back();
    take(cluster, 1, run);
    run.host = HostState::used;
  }
  return Reserved::yes;
}

Reserved Allocator::reserve_all(u64 wanted, HostRun& run) {
  while (true) {
    const Reserved result = ensure_block();
    if (result != Reserved::yes) return result;
    const u64 unused = count_unused(cursor_, first_unloaded(cursor_, cursor_ + wanted));
    if (unused == wanted) break;
    const u64 stop = cursor_ + unused;
    if (refcounts_.is_loaded(refcounts_.block_of(stop))) {
      cursor_ = stop + 1;  // in use: what lies before it is left unused
      continue;
    }
    const Reserved made = make_block_of(stop);
    if (made != Reserved::yes) return made;
  }
  if (is_metadata(cursor_, wanted)) return Reserved::overlap;
  take(cursor_, wanted, run);
  cursor_ += wanted;
  return Reserved::yes;
}

u64 Allocator::first_unloaded(u64 cluster, u64 end) const {
  while (cluster < end && refcounts_.is_loaded(refcounts_.block_of(cluster))) {
    cluster = (refcounts_.block_of(cluster) + 1) * refcounts_.clusters_per_block();
  }
  return std::min(cluster, end);
}

void Allocator::take(u64 cluster, u64 count, HostRun& run) {
  for (u64 i = 0; i < count; ++i) refcounts_.set(cluster + i, 1);
  run = {cluster, count, cluster >= fresh_cluster_ ? HostState::fresh : HostState::used};
}

u64 Allocator::skip_used(u64 cluster, u64 end) const {
  while (cluster < end && refcounts_.get(cluster) != 0) ++cluster;
  return cluster;
}

u64 Allocator::count_unused(u64 cluster, u64 end) const {
  u64 count = 0;
  while (cluster + count < end && refcounts_.get(cluster + count) == 0) ++count;
  return count;
}

Reserved Allocator::ensure_block() {
  while (true) {
    if (cursor_ >= kMaxHostBytes >> cluster_bits_) return Reserved::no_space;
    if (refcounts_.is_loaded(refcounts_.block_of(cursor_))) return Reserved::yes;
    const Reserved result = make_block_of(cursor_);
    if (result != Reserved::yes) return result;
  }
}

// At the cursor, which is not in use. That moves, be it that the table must grow first.
Reserved Allocator::make_block_of(u64 cluster) {
  const u64 block = refcounts_.block_of(cluster);
  if (block >= refcounts_.table().size()) return enlarge_table(block);
  if (refcounts_.block_offset(block) != 0) {
    missing_block_ = block;
    return Reserved::needs_block;
  }
  if (is_metadata(cursor_, 1)) return Reserved::overlap;
  refcounts_.add_new(block, cursor_ << cluster_bits_);
  refcounts_.set(cursor_, 1);
  add_metadata(cursor_, 1);
  ++cursor_;
  return Reserved::yes;
}

// All blocks behind the old table's end are made on the way, so nothing needs to be read here.
Reserved Allocator::enlarge_table(u64 block) {
  const u64 per_cluster = (u64{1} << cluster_bits_) / sizeof(be64);
  u64 entries = std::max(2 * refcounts_.table().size(), block + 1);
  entries = std::min(base::align_up(entries, per_cluster), kMaxTableEntries);
  if (block >= entries) return Reserved::no_space;
  refcounts_.enlarge_table(entries);
  HostRun run;
  const u64 clusters = entries / per_cluster;
  const Reserved result = reserve_all(clusters, run);
  if (result != Reserved::yes) return result;
  // A move that no flush has seen is forgotten: nothing in the file knows of it.
  if (move_ && !is_move_taken_) {
    for (u64 i = 0; i < move_->clusters; ++i) {
      give_back((move_->offset >> cluster_bits_) + i);
    }
    remove_metadata(move_->offset >> cluster_bits_, move_->clusters);
  }
  move_ = TableMove{run.cluster << cluster_bits_, clusters};
  is_move_taken_ = false;
  add_metadata(run.cluster, clusters);
  return Reserved::yes;
}

std::optional<TableMove> Allocator::take_move() {
  is_move_taken_ = move_.has_value();
  return move_;
}

TableMove Allocator::move_done(const TableMove& move) {
  const TableMove old = std::exchange(table_, move);
  if (move_ && move_->offset == move.offset) move_.reset();
  is_move_taken_ = false;
  return old;
}

void Allocator::add_metadata(u64 cluster, u64 count) {
  auto at = std::upper_bound(metadata_.begin(), metadata_.end(), cluster);
  for (u64 i = 0; i < count; ++i) at = metadata_.insert(at, cluster + i) + 1;
}

void Allocator::remove_metadata(u64 cluster, u64 count) {
  const auto first = std::lower_bound(metadata_.begin(), metadata_.end(), cluster);
  const auto last = std::lower_bound(first, metadata_.end(), cluster + count);
  metadata_.erase(first, last);
}

bool Allocator::is_metadata(u64 cluster, u64 count) const {
  const auto at = std::lower_bound(metadata_.begin(), metadata_.end(), cluster);
  return at != metadata_.end() && *at < cluster + count;
}

}  // namespace blockdev::qcow2
