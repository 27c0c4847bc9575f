#include "blockdev/qcow2_check.h"

#include <algorithm>
#include <climits>

#include "blockdev/qcow2_header.h"
#include "blockdev/qcow2_map.h"
#include "blockdev/qcow2_refcounts.h"
#include "blockdev/qcow2_snapshots.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

constexpr u64 kMaxFileClusters = INT_MAX;  // as QEMU
constexpr u64 kAnySubclusterAllocated = 0xffffffff;

// Whose tables these are: the active ones give the figures of fragmentation.
enum class Owner : u8 { disk, snapshot };

class Checker final {
 public:
  Checker(const base::Fd& fd, u64 file_bytes, const WireHeader& wire, StatedRefcounts stated)
      : fd_(fd),
        file_bytes_(file_bytes),
        wire_(wire),
        geometry_(wire.cluster_bits, (wire.incompatible_features & kExtendedL2) != 0),
        stated_(std::move(stated)),
        counts_(base::divide_up(file_bytes, geometry_.cluster_bytes()), stated_.maximum()) {}

  Result<CheckReport> run() {
    report_.total_clusters =
        base::divide_up(base::align_down(wire_.size, 512), geometry_.cluster_bytes());
    const SnapshotTable snapshots = TRY(read_snapshot_table(fd_, file_bytes_, wire_));
    TRY(count_references(snapshots));
    TRY(count_refcount_blocks());
    TRY(compare());
    TRY(check_copied_flags());
    return std::move(report_);
  }

 private:
  Result<void> count_references(const SnapshotTable& snapshots) {
    TRY(use(0, geometry_.cluster_bytes(), "header"));
    TRY(count_l1(wire_.l1_table_offset, wire_.l1_size, Owner::disk));
    for (u64 i = 0; i < snapshots.entries.size(); ++i) {
      const Snapshot& snapshot = snapshots.entries[i];
      if (snapshot.is_incomplete) {
        corruption("snapshot entry {}: lacks fields that version 3 requires", i);
      }
      if (!base::is_aligned(snapshot.l1_offset, geometry_.cluster_bytes())) {
        corruption("snapshot entry {}: L1 table at {:#x} is not at a multiple of the cluster size",
                   i, snapshot.l1_offset);
      } else if (snapshot.l1_size > kMaxL1Bytes / sizeof(be64)) {
        corruption("snapshot entry {}: L1 table of {} entries", i, snapshot.l1_size);
      } else {
        TRY(count_l1(snapshot.l1_offset, snapshot.l1_size, Owner::snapshot));
      }
    }
    TRY(use(wire_.snapshots_offset, snapshots.bytes, "snapshot table"));
    return use(wire_.refcount_table_offset, stated_.table().size_bytes(), "refcount table");
  }

  // One more reference to each cluster of the range. The last one may be in the file in part.
  Result<void> use(u64 offset, u64 bytes, std::string_view name) {
    if (bytes == 0) return {};
    const u64 end = base::checked_add(offset, bytes).value_or(~u64{0});
    if (end >= file_bytes_ + geometry_.cluster_bytes()) {
      corruption("{} at {:#x}, {} bytes: outside file (size {:#x})", name, offset, bytes,
                 file_bytes_);
      return {};
    }
    for (u64 cluster = index_of(offset); cluster <= index_of(end - 1); ++cluster) {
      const ReferenceCounts::Added added = TRY(counts_.add(cluster));
      if (added == ReferenceCounts::Added::overflow) {
        corruption("cluster {} ({}): more references than a refcount of this image can state",
                   cluster, name);
      }
    }
    return {};
  }

  Result<std::vector<be64>> read_table(u64 offset, u64 count, std::string_view name) const {
    std::vector<be64> table(count);
    const std::span bytes(reinterpret_cast<u8*>(table.data()), count * sizeof(be64));
    TRY_CONTEXT(read_padded(fd_, file_bytes_, bytes, offset), name);
    return table;
  }
  Result<void> read_l2(u64 offset) {
    l2_ = TRY(read_table(offset, geometry_.cluster_bytes() / sizeof(be64), "L2 table"));
    return {};
  }
  ClusterEntry entry(u64 index) const {
    if (!geometry_.has_extended_l2()) return {l2_[index], 0};
    return {l2_[2 * index], l2_[2 * index + 1]};
  }

  Result<void> count_l1(u64 offset, u64 count, Owner owner) {
    TRY(use(offset, count * sizeof(be64), "L1 table"));
    const std::vector<be64> l1 = TRY(read_table(offset, count, "L1 table"));
    for (const u64 value : l1) {
      if (value == 0) continue;
      if ((value & kL1Reserved) != 0) corruption("L1 entry {:#018x}: reserved bits are set", value);
      const u64 l2_offset = value & kOffsetMask;
      TRY(use(l2_offset, geometry_.cluster_bytes(), "L2 table"));
      if (index_offset(l2_offset) != 0) {
        corruption("L1 entry {:#018x}: not at a multiple of the cluster size", value);
      }
      TRY(count_l2(l2_offset, owner));
    }
    return {};
  }

  Result<void> count_l2(u64 offset, Owner owner) {
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

  Result<void> count_compressed(const ClusterEntry& cluster, Owner owner) {
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
    return use(range.offset, range.bytes, "compressed cluster");
  }

  Result<void> count_data(const ClusterEntry& cluster, Owner owner, u64& contiguous_at) {
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
    return use(offset, geometry_.cluster_bytes(), "data cluster");
  }

  Result<void> count_refcount_blocks() {
    for (const u64 value : stated_.table()) {
      const u64 offset = value & ~kRefcountTableReserved;
      if ((value & kRefcountTableReserved) != 0) {
        corruption("refcount table entry {:#018x}: reserved bits are set", value);
      } else if (index_offset(offset) != 0) {
        corruption("refcount block at {:#x} is not at a multiple of the cluster size", offset);
      } else if (index_of(offset) >= counts_.cluster_count()) {
        corruption("refcount block at {:#x} outside file (size {:#x})", offset, file_bytes_);
      } else if (offset != 0) {
        TRY(use(offset, geometry_.cluster_bytes(), "refcount block"));
        if (counts_.get(index_of(offset)) != 1) {
          corruption("refcount block at {:#x} lies over something else", offset);
        }
      }
    }
    return {};
  }

  Result<void> compare() {
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

  void tell_difference(u64 cluster, u64 stated, u64 counted) {
    if (stated < counted) {
      corruption("cluster {}: refcount {}, {} references", cluster, stated, counted);
    } else {
      ++report_.leaks;
      note(fmt::format("leaked: cluster {}: refcount {}, {} references", cluster, stated, counted));
    }
  }

  // COPIED says "referred to once, write in place". Only the active tables have it.
  Result<void> check_copied_flags() {
    const std::vector<be64> l1 = TRY(read_table(wire_.l1_table_offset, wire_.l1_size, "L1 table"));
    for (const u64 value : l1) {
      const u64 l2_offset = value & kOffsetMask;
      if (l2_offset == 0) continue;
      if (!stated_.is_readable(index_of(l2_offset))) continue;
      TRY(check_copied(l2_offset, value, "L1"));
      TRY(read_l2(l2_offset));
      for (u64 i = 0; i < geometry_.entries_per_l2_table(); ++i) {
        const ClusterEntry cluster = entry(i);
        if (cluster.is_compressed() || cluster.host_offset() == 0) continue;
        TRY(check_copied(cluster.host_offset(), cluster.entry, "L2"));
      }
    }
    return {};
  }

  Result<void> check_copied(u64 offset, u64 value, std::string_view table) {
    const u64 cluster = index_of(offset);
    if (!stated_.is_readable(cluster)) return {};
    bool is_one = false;
    if (cluster < counts_.cluster_count()) {
      is_one = counts_.is_stated_as_one(cluster);
    } else {
      const u64 stated = TRY(stated_.get(cluster));
      is_one = stated == 1;
    }
    const bool is_copied = (value & kCopied) != 0;
    if (is_one != is_copied) {
      corruption("{} entry {:#018x}: COPIED is {}, but the refcount of its cluster is {}", table,
                 value, is_copied ? "set" : "not set", is_one ? "one" : "not one");
    }
    return {};
  }

  u64 index_of(u64 offset) const { return offset >> geometry_.cluster_bits(); }
  u64 index_offset(u64 offset) const { return offset & (geometry_.cluster_bytes() - 1); }

  void bad_entry(const ClusterEntry& cluster, std::string_view why) {
    corruption("L2 entry {:#018x}: {}", cluster.entry, why);
  }
  template <class... Args>
  void corruption(fmt::format_string<Args...> format, Args&&... args) {
    ++report_.corruptions;
    if (report_.findings.size() < CheckReport::kMaxFindings) {
      note("corrupt: " + fmt::format(format, std::forward<Args>(args)...));
    }
  }
  void note(std::string text) {
    if (report_.findings.size() < CheckReport::kMaxFindings) {
      report_.findings.push_back(std::move(text));
    }
  }

  const base::Fd& fd_;
  const u64 file_bytes_;
  const WireHeader wire_;
  const Geometry geometry_;
  const StatedRefcounts stated_;
  ReferenceCounts counts_;
  std::vector<be64> l2_;
  CheckReport report_;
};

}  // namespace

Result<CheckReport> check_image(const base::Fd& fd) {
  const u64 file_bytes = TRY(base::file_size(fd));
  const WireHeader wire = TRY(read_header_to_check(fd, file_bytes));
  if (file_bytes >> wire.cluster_bits >= kMaxFileClusters) {
    return make_error(ErrorKind::unsupported, "a file of {} bytes has more than {} clusters",
                      file_bytes, kMaxFileClusters);
  }
  StatedRefcounts stated = TRY(StatedRefcounts::create(fd, file_bytes, wire));
  return Checker(fd, file_bytes, wire, std::move(stated)).run();
}

}  // namespace blockdev::qcow2
