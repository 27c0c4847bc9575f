// How a Qcow2Writer makes durable what is complete (reference/qcow2.md 2.3 and 2.4).
//
//   first   refcounts in place, new refcount blocks, new L2 tables: nothing leads there yet  (I3)
//     barrier A: and the data that was written before
//   links   where new refcount blocks lie, or in the header where a new refcount table lies  (I6)
//     barrier, only if there were any
//   second  entries of L2 tables and of the L1 table                                         (I1)
//     barrier B: whoever waits is told
//   then    what is not referred to any more is punched, its refcounts go down, and it may be
//           used again                                                                   (I4, I5)
//
// The refcounts that go down reach the file with the first batch of the next flush: harmless there,
// as nothing durable refers to those clusters any more.

#include "blockdev/qcow2_flush.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "blockdev/qcow2_writer.h"
#include "vmm/base/check.h"
#include "vmm/base/log.h"
#include "vmm/base/planted_fault.h"
#include "vmm/base/ranges.h"

namespace blockdev {

using qcow2::FlushPlan;
using qcow2::kNewTable;
using qcow2::L2Slice;
using qcow2::RefcountBlock;

namespace {

constexpr u64 kSectorWords = 512 / sizeof(be64);

void copy_words(const L2Slice& slice, std::span<u8> to) {
  for (u64 i = 0; i < to.size() / sizeof(u64); ++i) {
    const u64 word = slice.words[i].load(std::memory_order_relaxed);
    std::memcpy(to.data() + i * sizeof word, &word, sizeof word);
  }
}

void put_word(std::span<u8> to, u64 index, u64 word) {
  const be64 wire = word;
  std::memcpy(to.data() + index * sizeof wire, &wire, sizeof wire);
}

// The sectors of 64 words that hold the given ones, ascending, each once.
std::vector<u64> sectors_of(std::span<const u64> indices) {
  std::vector<u64> sectors;
  for (const u64 index : indices) sectors.push_back(index / kSectorWords);
  std::sort(sectors.begin(), sectors.end());
  sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
  return sectors;
}

}  // namespace

int Qcow2Writer::flush(WaitingIo& io, FlushReason reason) {
  base::MutexLock one_at_a_time(flush_mutex_);
  return flush_alone(io, reason);
}

int Qcow2Writer::flush_alone(WaitingIo& io, FlushReason reason) {
  const Condition condition = condition_.load();
  if (condition == Condition::corrupt) return mark_corrupt(io);
  if (condition == Condition::failed) {
    need_.store(FlushNeed::none, std::memory_order_relaxed);
    wake_waiters();  // whose writes fail now
    return EIO;
  }
  FlushPlan plan;
  {
    base::MutexLock lock(mutex_);
    collect(plan, reason);
  }
  if (base::planted("free-before-clear")) free_clusters(std::exchange(plan.frees, {}), io);
  const int error = plan.is_empty() ? barrier(io) : carry_out(plan, io);
  {
    base::MutexLock lock(mutex_);
    if (error == 0) {
      settle(plan);
    } else {
      take_back(plan);
    }
    refusal_ = std::exchange(is_flush_waited_for_, false) ? error : 0;
  }
  if (error == 0) free_clusters(plan.frees, io);
  if (condition_.load() == Condition::corrupt) mark_corrupt(io);
  wake_waiters();
  return error;
}

void Qcow2Writer::collect(FlushPlan& plan, FlushReason reason) {
  need_.store(FlushNeed::none, std::memory_order_relaxed);
  plan.frees.swap(pending_frees_);
  if (base::planted("decrement-first")) {
    for (const u64 cluster : std::exchange(plan.frees, {})) {
      if (!refcounts_.is_loaded(refcounts_.block_of(cluster))) continue;
      refcounts_.set(cluster, refcounts_.get(cluster) - 1);
    }
  }
  plan.move = allocator_.take_move();
  plan.linked = take_linked(reason == FlushReason::background || plan.move ? LinkWhich::all
                                                                           : LinkWhich::needed);
  collect_refcounts(plan);
  collect_links(plan, plan.linked);
  collect_tables(plan);
  collect_l1(plan);
}

// The new refcount blocks that this flush leads to. Those that count nothing yet are left to a
// flush that nobody waits for, as they cost a third barrier.
std::vector<u64> Qcow2Writer::take_linked(LinkWhich which) {
  std::vector<u64> linked;
  std::vector<u64> left;
  for (const u64 index : refcounts_.new_blocks()) {
    RefcountBlock& block = refcounts_.block(index);
    // Dirty: a flush that failed had taken it; what is written must be led to.
    const bool is_taken = which == LinkWhich::all || block.is_needed || block.is_dirty;
    (is_taken ? linked : left).push_back(index);
    if (is_taken) refcounts_.mark_dirty(block, 0);  // so that it is written
  }
  refcounts_.new_blocks() = left;
  if (!left.empty()) need_.store(FlushNeed::now, std::memory_order_relaxed);
  return linked;
}

void Qcow2Writer::collect_refcounts(FlushPlan& plan) {
  const u64 piece = refcounts_.piece_bytes();
  for (RefcountBlock* block : refcounts_.dirty_blocks()) {
    const u64 offset = refcounts_.block_offset(block->index);
    for (u64 i = 0; i < block->dirty_pieces.size(); ++i) {
      if (!block->dirty_pieces[i] && !block->is_new) continue;
      std::memcpy(plan.first.add(offset + i * piece, piece).data(), &block->bytes[i * piece],
                  piece);
    }
    plan.blocks.push_back({block, block->dirty_pieces, block->is_new});
    block->dirty_pieces.assign(block->dirty_pieces.size(), false);
    block->is_dirty = false;
    block->is_new = false;
    ++block->pins;
  }
  refcounts_.dirty_blocks().clear();
}

void Qcow2Writer::collect_links(FlushPlan& plan, const std::vector<u64>& linked) {
  const std::span<const u64> table = refcounts_.table();
  if (plan.move) {
    const std::span<u8> to =
        plan.first.add(plan.move->offset, plan.move->clusters << geometry_.cluster_bits());
    for (u64 i = 0; i < table.size(); ++i) put_word(to, i, table[i]);
    return;
  }
  const std::vector<u64>& left = refcounts_.new_blocks();
  for (const u64 sector : sectors_of(linked)) {
    const u64 first = sector * kSectorWords;
    const std::span<u8> to = plan.links.add(allocator_.table().offset + first * sizeof(be64),
                                            kSectorWords * sizeof(be64));
    for (u64 i = first; i < first + kSectorWords; ++i) {
      if (std::ranges::find(left, i) == left.end()) put_word(to, i - first, table[i]);
    }
  }
}

// A new table is written as a whole, with all that is complete: nothing leads to it before its L1
// entry does.
void Qcow2Writer::collect_tables(FlushPlan& plan) {
  plan.l1_indices.swap(tables_.dirty_l1_indices());
  std::sort(plan.l1_indices.begin(), plan.l1_indices.end());
  std::vector<std::pair<u64, std::span<u8>>> new_tables;  // L1 index and bytes
  for (const u64 index : plan.l1_indices) {
    const u64 entry = tables_.l1_entry(index);
    if ((entry & kNewTable) == 0) continue;
    new_tables.emplace_back(index,
                            plan.first.add(entry & qcow2::kOffsetMask, geometry_.cluster_bytes()));
    plan.new_tables.push_back(index);
  }
  plan.slices.swap(tables_.dirty_slices());
  for (L2Slice* slice : plan.slices) {
    slice->is_dirty = false;
    ++slice->pins;
    const u64 l1_index = slice->number / tables_.slices_per_table();
    const u64 within = slice->number % tables_.slices_per_table() * tables_.slice_bytes();
    const u64 entry = tables_.l1_entry(l1_index);
    if ((entry & kNewTable) != 0) {
      const auto found =
          std::lower_bound(new_tables.begin(), new_tables.end(), l1_index,
                           [](const auto& table, u64 wanted) { return table.first < wanted; });
      CHECK(found != new_tables.end() && found->first == l1_index);
      copy_words(*slice, found->second.subspan(within, tables_.slice_bytes()));
    } else {
      copy_words(*slice,
                 plan.second.add((entry & qcow2::kOffsetMask) + within, tables_.slice_bytes()));
    }
  }
}

void Qcow2Writer::collect_l1(FlushPlan& plan) {
  for (const u64 sector : sectors_of(plan.l1_indices)) {
    const u64 first = sector * kSectorWords;
    const u64 count = std::min(kSectorWords, tables_.l1_count() - first);
    const std::span<u8> to =
        plan.second.add(l1_offset_ + first * sizeof(be64), count * sizeof(be64));
    for (u64 i = 0; i < count; ++i) put_word(to, i, tables_.l1_entry(first + i) & ~kNewTable);
  }
}

int Qcow2Writer::carry_out(FlushPlan& plan, WaitingIo& io) {
  if (base::planted("swap-phases")) std::swap(plan.first, plan.second);
  if (const int error = io.run(plan.first.operations(fd_.get())); error != 0) return error;
  const bool has_barrier = !base::planted("drop-barrier-a") &&
                           !(base::planted("drop-data-barrier") && plan.first.is_empty());
  if (const int error = has_barrier ? barrier(io) : 0; error != 0) return error;
  plan.is_first_durable = true;
  if (plan.move) {
    const be64 offset = plan.move->offset;
    const be32 clusters = static_cast<u32>(plan.move->clusters);
    std::memcpy(&header_sector_[48], &offset, sizeof offset);
    std::memcpy(&header_sector_[56], &clusters, sizeof clusters);
    if (const int error = write_header(io); error != 0) return error;
    plan.is_moved = true;
  }
  if (!plan.links.is_empty()) {
    if (const int error = io.run(plan.links.operations(fd_.get())); error != 0) return error;
  }
  if ((plan.move || !plan.links.is_empty()) && !base::planted("drop-link-barrier")) {
    if (const int error = barrier(io); error != 0) return error;
  }
  if (plan.second.is_empty()) return 0;
  if (const int error = io.run(plan.second.operations(fd_.get())); error != 0) return error;
  return base::planted("drop-barrier-b") ? 0 : barrier(io);
}

// What a failed sync was to make durable may be lost although a later one succeeds.
int Qcow2Writer::barrier(WaitingIo& io) {
  const int error = io.sync(fd_.get());
  if (error == 0) return 0;
  Condition good = Condition::good;
  condition_.compare_exchange_strong(good, Condition::failed);
  base::log(base::LogLevel::error, "disk: {}; nothing more is written to the image",
            Error::from_errno(error, "flush").message());
  return error;
}

// One sector, so it is there as a whole or not at all (I6).
int Qcow2Writer::write_header(WaitingIo& io) {
  const int error = io.write(fd_.get(), 0, header_sector_);
  if (error == 0) return 0;
  // Nobody knows what the file says now.
  Condition good = Condition::good;
  condition_.compare_exchange_strong(good, Condition::failed);
  return error;
}

// I8: what did not reach the file stays to be written, and what did is not done again: a refcount
// table that the header leads to is written in place no more, and its clusters are not free.
void Qcow2Writer::take_back(FlushPlan& plan) {
  for (FlushPlan::Pieces& pieces : plan.blocks) {
    --pieces.block->pins;
    for (u64 i = 0; i < pieces.dirty.size(); ++i) {
      if (pieces.dirty[i]) refcounts_.mark_dirty(*pieces.block, i);
    }
    if (pieces.was_new) pieces.block->is_new = true;
  }
  // Not those that were new: one that an earlier flush wrote may have been left to be linked.
  std::vector<u64>& new_blocks = refcounts_.new_blocks();
  new_blocks.insert(new_blocks.end(), plan.linked.begin(), plan.linked.end());
  // The L1 entries may be in the file: from now on entries go to these tables as to any other.
  if (plan.is_first_durable) end_new_tables(plan);
  for (L2Slice* slice : plan.slices) {
    --slice->pins;
    tables_.mark_dirty(*slice);
  }
  std::vector<u64>& l1_indices = tables_.dirty_l1_indices();
  l1_indices.insert(l1_indices.end(), plan.l1_indices.begin(), plan.l1_indices.end());
  if (plan.is_moved) {
    end_move(plan);
  } else if (plan.move) {
    allocator_.move_failed();
  }
  pending_frees_.insert(pending_frees_.end(), plan.frees.begin(), plan.frees.end());
  note_change();
}

void Qcow2Writer::settle(FlushPlan& plan) {
  for (const FlushPlan::Pieces& pieces : plan.blocks) --pieces.block->pins;
  for (L2Slice* slice : plan.slices) --slice->pins;
  end_new_tables(plan);
  if (plan.move) end_move(plan);
}

// The old table goes when nothing durable leads to it.
void Qcow2Writer::end_move(FlushPlan& plan) {
  const qcow2::TableMove old = allocator_.move_done(*plan.move);
  const u64 cluster = old.offset >> geometry_.cluster_bits();
  allocator_.remove_metadata(cluster, old.clusters);
  for (u64 i = 0; i < old.clusters; ++i) plan.frees.push_back(cluster + i);
}

void Qcow2Writer::end_new_tables(const FlushPlan& plan) {
  for (const u64 index : plan.new_tables) {
    tables_.set_l1_entry(index, tables_.l1_entry(index) & ~kNewTable);
  }
}

// Nothing durable refers to them any more. Each is there as often as something did.
void Qcow2Writer::free_clusters(std::vector<u64> clusters, WaitingIo& io) {
  std::ranges::sort(clusters);
  for (auto first = clusters.begin(); first != clusters.end();) {
    const auto next = std::upper_bound(first, clusters.end(), *first);
    if (!free_cluster(*first, static_cast<u64>(next - first), io)) return;
    first = next;
  }
}

// False: the image is damaged.
bool Qcow2Writer::free_cluster(u64 cluster, u64 references, WaitingIo& io) {
  u64 block = 0;
  while (true) {
    {
      base::MutexLock lock(mutex_);
      block = refcounts_.block_of(cluster);
      if (refcounts_.block_offset(block) == 0 || refcounts_.is_loaded(block)) {
        const u64 count = refcounts_.get(cluster);
        // Of a damaged image, what is said to be compressed data may be anything.
        if (count < references || allocator_.is_metadata(cluster, 1)) {
          set_corrupt("compressed data lies where its refcounts deny it");
          return false;
        }
        if (count > references) {
          refcounts_.set(cluster, count - references);
          note_change();
          return true;
        }
        ++refcounts_.block(block).pins;
        break;
      }
    }
    if (const Result<void> fetched = fetch({Missing::Kind::block, block}); !fetched) {
      // A leak: the next check finds it.
      base::log(base::LogLevel::warning, "disk: {}", fetched.error().message());
      return true;
    }
  }
  // I5: first the hole, and only then may it be used again: it stays counted until then. A file
  // system that has no holes keeps the space.
  io.run({.kind = IoKind::punch,
          .fd = fd_.get(),
          .offset = cluster << geometry_.cluster_bits(),
          .length = geometry_.cluster_bytes()});
  base::MutexLock lock(mutex_);
  --refcounts_.block(block).pins;
  refcounts_.set(cluster, 0);
  allocator_.add_free(cluster);
  note_change();
  return true;
}

int Qcow2Writer::mark_corrupt(WaitingIo& io) {
  need_.store(FlushNeed::none, std::memory_order_relaxed);
  wake_waiters();
  if (is_corrupt_marked_ || header_.version == 2) return EIO;
  is_corrupt_marked_ = true;
  header_sector_[79] |= qcow2::kCorrupt;
  if (io.write(fd_.get(), 0, header_sector_) == 0) io.sync(fd_.get());
  return EIO;
}

Result<void> Qcow2Writer::close(WaitingIo& io) {
  base::MutexLock no_flush_runs(flush_mutex_);
  {
    base::MutexLock lock(mutex_);
    CHECK(in_flight_.empty());
    const std::vector<u64> returned = allocator_.take_returned();
    pending_frees_.insert(pending_frees_.end(), returned.begin(), returned.end());
    if (!returned.empty()) note_change();
  }
  if (condition_.load() == Condition::corrupt) mark_corrupt(io);
  while (flush_need() != FlushNeed::none) {
    const int error = flush_alone(io, FlushReason::background);
    if (error != 0) return Error::from_errno(error, "close a qcow2 image");
  }
  if (condition_.load() == Condition::failed) {
    return Error::from_errno(EIO, "close a qcow2 image that could not be flushed");
  }
  return {};
}

}  // namespace blockdev
