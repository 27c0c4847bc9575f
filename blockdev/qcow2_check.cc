#include "blockdev/qcow2_check.h"

#include <algorithm>
#include <climits>

#include "blockdev/qcow2_checker.h"
#include "blockdev/qcow2_header.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

constexpr u64 kMaxFileClusters = INT_MAX;  // as QEMU
constexpr u64 kAnySubclusterAllocated = 0xffffffff;
constexpr u64 CheckReport::*kReference = &CheckReport::bad_references;
constexpr u64 CheckReport::*kStructure = &CheckReport::bad_structures;

}  // namespace

Result<CheckReport> check_image(const base::Fd& fd) {
  Checker checker = TRY(Checker::create(fd));
  return checker.run();
}

Checker::Checker(const base::Fd& fd, u64 file_bytes, const WireHeader& wire, StatedRefcounts stated)
    : fd_(&fd),
      file_bytes_(file_bytes),
      wire_(wire),
      geometry_(wire.cluster_bits, (wire.incompatible_features & kExtendedL2) != 0),
      stated_(std::move(stated)),
      counts_(base::divide_up(file_bytes, geometry_.cluster_bytes()), stated_.maximum()) {}

Result<Checker> Checker::create(const base::Fd& fd) {
  const u64 file_bytes = TRY(base::file_size(fd));
  const WireHeader wire = TRY(read_header_to_check(fd, file_bytes));
  if (file_bytes >> wire.cluster_bits >= kMaxFileClusters) {
    return make_error(ErrorKind::unsupported, "a file of {} bytes has more than {} clusters",
                      file_bytes, kMaxFileClusters);
  }
  StatedRefcounts stated = TRY(StatedRefcounts::create(fd, file_bytes, wire));
  return Checker(fd, file_bytes, wire, std::move(stated));
}

Result<CheckReport> Checker::run() {
  report_.total_clusters =
      base::divide_up(base::align_down(wire_.size, 512), geometry_.cluster_bytes());
  const SnapshotTable snapshots = TRY(read_snapshot_table(*fd_, file_bytes_, wire_));
  TRY(count_references(snapshots));
  TRY(count_refcount_structures());
  TRY(compare());
  TRY(check_copied_flags());
  return report_;
}

Result<u64> Checker::count_without_refcounts() {
  const SnapshotTable snapshots = TRY(read_snapshot_table(*fd_, file_bytes_, wire_));
  TRY(count_references(snapshots));
  return report_.corruptions;
}

Result<void> Checker::count_references(const SnapshotTable& snapshots) {
  TRY(use(0, geometry_.cluster_bytes(), "header", kReference));
  TRY(count_l1(wire_.l1_table_offset, wire_.l1_size, Owner::disk));
  for (u64 i = 0; i < snapshots.entries.size(); ++i) {
    TRY(count_snapshot(i, snapshots.entries[i]));
  }
  return use(wire_.snapshots_offset, snapshots.bytes, "snapshot table", kReference);
}

Result<void> Checker::count_snapshot(u64 index, const Snapshot& snapshot) {
  if (snapshot.is_incomplete) {
    corruption(kReference, "snapshot entry {}: lacks fields that version 3 requires", index);
  }
  if (!base::is_aligned(snapshot.l1_offset, geometry_.cluster_bytes())) {
    corruption(kReference,
               "snapshot entry {}: L1 table at {:#x} is not at a multiple of the cluster size",
               index, snapshot.l1_offset);
    return {};
  }
  if (snapshot.l1_size > kMaxL1Bytes / sizeof(be64)) {
    corruption(kReference, "snapshot entry {}: L1 table of {} entries", index, snapshot.l1_size);
    return {};
  }
  return count_l1(snapshot.l1_offset, snapshot.l1_size, Owner::snapshot);
}

Result<void> Checker::use(u64 offset, u64 bytes, std::string_view name, u64 CheckReport::*kind) {
  if (bytes == 0) return {};
  const u64 end = base::checked_add(offset, bytes).value_or(~u64{0});
  if (end >= file_bytes_ + geometry_.cluster_bytes()) {
    corruption(kind, "{} at {:#x}, {} bytes: outside file (size {:#x})", name, offset, bytes,
               file_bytes_);
    return {};
  }
  for (u64 cluster = index_of(offset); cluster <= index_of(end - 1); ++cluster) {
    const ReferenceCounts::Added added = TRY(counts_.add(cluster));
    if (added == ReferenceCounts::Added::overflow) {
      corruption(kReference,
                 "cluster {} ({}): more references than a refcount of this image can state",
                 cluster, name);
    }
  }
  return {};
}

Result<std::vector<be64>> Checker::read_table(u64 offset, u64 count, std::string_view name) const {
  std::vector<be64> table(count);
  const std::span bytes(reinterpret_cast<u8*>(table.data()), count * sizeof(be64));
  TRY_CONTEXT(read_padded(*fd_, file_bytes_, bytes, offset), name);
  return table;
}

Result<void> Checker::read_l2(u64 offset) {
  l2_ = TRY(read_table(offset, geometry_.cluster_bytes() / sizeof(be64), "L2 table"));
  return {};
}

ClusterEntry Checker::entry(u64 index) const {
  if (!geometry_.has_extended_l2()) return {l2_[index], 0};
  return {l2_[2 * index], l2_[2 * index + 1]};
}

Result<void> Checker::count_l1(u64 offset, u64 count, Owner owner) {
  TRY(use(offset, count * sizeof(be64), "L1 table", kReference));
  const std::vector<be64> l1 = TRY(read_table(offset, count, "L1 table"));
  for (const u64 value : l1) {
    if (value == 0) continue;
    if ((value & kL1Reserved) != 0) {
      corruption(kReference, "L1 entry {:#018x}: reserved bits are set", value);
    }
    const u64 l2_offset = value & kOffsetMask;
    TRY(use(l2_offset, geometry_.cluster_bytes(), "L2 table", kReference));
    if (index_offset(l2_offset) != 0) {
      corruption(kReference, "L1 entry {:#018x}: not at a multiple of the cluster size", value);
    }
    TRY(count_l2(l2_offset, owner));
  }
  return {};
}

Result<void> Checker::count_l2(u64 offset, Owner owner) {
  TRY(read_l2(offset));
  u64 contiguous_at = 0;  // where the next cluster lies if the disk lies in one piece
  for (u64 i = 0; i < geometry_.entries_per_l2_table(); ++i) {
    const ClusterEntry cluster = entry(i);
    if (cluster.is_compressed()) {
      TRY(count_compressed(cluster, owner));
      continue;
    }
    if ((cluster.entry & kL2Reserved) != 0) bad_entry(cluster, "reserved bits are set");
    if (cluster.host_offset() != 0) {
      TRY(count_data(cluster, owner, contiguous_at));
    } else if ((cluster.bitmap & kAnySubclusterAllocated) != 0) {
      bad_entry(cluster, "subclusters are allocated in no cluster");
    }
  }
  return {};
}

Result<void> Checker::count_compressed(const ClusterEntry& cluster, Owner owner) {
  if ((cluster.entry & kCopied) != 0) bad_entry(cluster, "COPIED is set on compressed data");
  if (cluster.bitmap != 0) {
    bad_entry(cluster, "a compressed cluster has no subclusters");
    return {};
  }
  if (owner == Owner::disk) {
    ++report_.allocated_clusters;
    ++report_.compressed_clusters;
    ++report_.fragmented_clusters;  // all of them: they are read in sectors they share
  }
  const CompressedRange range = compressed_range(geometry_, cluster.entry);
  return use(range.offset, range.bytes, "compressed cluster", kReference);
}

Result<void> Checker::count_data(const ClusterEntry& cluster, Owner owner, u64& contiguous_at) {
  const u64 offset = cluster.host_offset();
  if ((cluster.bitmap & cluster.bitmap >> 32) != 0) {
    bad_entry(cluster, "a subcluster is both allocated and zero");
  }
  if (index_offset(offset) != 0) bad_entry(cluster, "not at a multiple of the cluster size");
  if (owner == Owner::disk) {
    ++report_.allocated_clusters;
    if (contiguous_at != 0 && offset != contiguous_at) ++report_.fragmented_clusters;
    contiguous_at = offset + geometry_.cluster_bytes();
  }
  return use(offset, geometry_.cluster_bytes(), "data cluster", kReference);
}

Result<void> Checker::count_refcount_structures() {
  TRY(use(wire_.refcount_table_offset, stated_.table().size_bytes(), "refcount table", kStructure));
  for (const u64 value : stated_.table()) {
    const u64 offset = value & ~kRefcountTableReserved;
    if ((value & kRefcountTableReserved) != 0) {
      corruption(kStructure, "refcount table entry {:#018x}: reserved bits are set", value);
    } else if (index_offset(offset) != 0) {
      corruption(kStructure, "refcount block at {:#x} is not at a multiple of the cluster size",
                 offset);
    } else if (index_of(offset) >= counts_.cluster_count()) {
      corruption(kStructure, "refcount block at {:#x} outside file (size {:#x})", offset,
                 file_bytes_);
    } else if (offset != 0) {
      TRY(use(offset, geometry_.cluster_bytes(), "refcount block", kStructure));
      if (counts_.get(index_of(offset)) != 1) {
        corruption(kStructure, "refcount block at {:#x} lies over something else", offset);
      }
    }
  }
  return {};
}

Result<void> Checker::compare() {
  const u64 per_block = stated_.entries_per_block();
  const u64 end = counts_.cluster_count();
  u64 used_end = 1;
  for (u64 first = 0; first < end; first += per_block) {
    const u64 block_end = std::min(first + per_block, end);
    if (!stated_.is_readable(first)) {
      report_.check_errors += block_end - first;
      continue;
    }
    const std::vector<u8> block = TRY(stated_.block(first / per_block));
    for (u64 cluster = first; cluster < block_end; ++cluster) {
      if (block.empty()) cluster = std::min(counts_.skip_unused(cluster), block_end);
      if (cluster == block_end) break;
      const u64 stated = block.empty() ? 0 : stated_.value_in(block, cluster - first);
      if (stated == 1) counts_.note_stated_as_one(cluster);
      const u64 counted = counts_.get(cluster);
      if (stated > 0 || counted > 0) used_end = cluster + 1;
      if (stated != counted) tell_difference(cluster, stated, counted);
    }
  }
  report_.image_end_offset = used_end << geometry_.cluster_bits();
  return {};
}

void Checker::tell_difference(u64 cluster, u64 stated, u64 counted) {
  if (stated < counted) {
    corruption(&CheckReport::too_low_refcounts, "cluster {}: refcount {}, {} references", cluster,
               stated, counted);
  } else {
    ++report_.leaks;
    note(fmt::format("leaked: cluster {}: refcount {}, {} references", cluster, stated, counted));
  }
}

// Only the active tables have COPIED.
Result<void> Checker::for_each_reference(
    const std::function<Result<void>(const Reference&)>& use_reference) {
  const std::vector<be64> l1 = TRY(read_table(wire_.l1_table_offset, wire_.l1_size, "L1 table"));
  for (u64 i = 0; i < l1.size(); ++i) {
    const u64 l2_offset = l1[i] & kOffsetMask;
    if (l2_offset == 0 || !stated_.is_readable(index_of(l2_offset))) continue;
    const u64 entry_offset = wire_.l1_table_offset + i * sizeof(be64);
    TRY(use_reference({entry_offset, l1[i], index_of(l2_offset), "L1"}));
    TRY(read_l2(l2_offset));
    for (u64 k = 0; k < geometry_.entries_per_l2_table(); ++k) {
      const ClusterEntry cluster = entry(k);
      if (cluster.is_compressed() || cluster.host_offset() == 0) continue;
      TRY(use_reference({l2_offset + k * geometry_.entry_bytes(), cluster.entry,
                         index_of(cluster.host_offset()), "L2"}));
    }
  }
  return {};
}

Result<std::optional<bool>> Checker::is_stated_as_one(u64 cluster) const {
  if (!stated_.is_readable(cluster)) return std::optional<bool>();
  if (cluster < counts_.cluster_count()) return std::optional(counts_.is_stated_as_one(cluster));
  const u64 stated = TRY(stated_.get(cluster));
  return std::optional(stated == 1);
}

// COPIED says "referred to once, write in place".
Result<void> Checker::check_copied_flags() {
  return for_each_reference([this](const Reference& reference) -> Result<void> {
    const std::optional<bool> is_one = TRY(is_stated_as_one(reference.cluster));
    const bool is_copied = (reference.value & kCopied) != 0;
    if (is_one && *is_one != is_copied) {
      corruption(&CheckReport::wrong_copied_flags,
                 "{} entry {:#018x}: COPIED is {}, but the refcount of its cluster is {}",
                 reference.table, reference.value, is_copied ? "set" : "not set",
                 *is_one ? "one" : "not one");
    }
    return {};
  });
}

void Checker::bad_entry(const ClusterEntry& cluster, std::string_view why) {
  corruption(kReference, "L2 entry {:#018x}: {}", cluster.entry, why);
}

void Checker::note(std::string text) {
  if (report_.findings.size() < CheckReport::kMaxFindings) {
    report_.findings.push_back(std::move(text));
  }
}

}  // namespace blockdev::qcow2
