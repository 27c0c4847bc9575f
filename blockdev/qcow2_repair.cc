#include "blockdev/qcow2_repair.h"

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "blockdev/qcow2_checker.h"
#include "blockdev/qcow2_header.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

Result<void> write_be64(const base::Fd& fd, u64 offset, u64 value) {
  const be64 wire(value);
  return base::write_exactly(fd, {reinterpret_cast<const u8*>(&wire), sizeof wire}, offset);
}

// --- refcounts in their blocks ---

enum class Direction : u8 { raise, lower };

// Writes what was counted wherever the image states less, or more.
Result<void> adjust_refcounts(const base::Fd& fd, const Checker& checker, Direction direction) {
  const StatedRefcounts& stated = checker.stated();
  const u64 per_block = stated.entries_per_block();
  const u64 end = checker.counts().cluster_count();
  for (u64 first = 0; first < end; first += per_block) {
    std::vector<u8> block = TRY(stated.block(first / per_block));
    if (block.empty()) continue;
    bool is_changed = false;
    for (u64 i = 0; i < std::min(per_block, end - first); ++i) {
      const u64 is = stated.value_in(block, i);
      const u64 should_be = checker.counts().get(first + i);
      if (direction == Direction::raise ? is >= should_be : is <= should_be) continue;
      stated.set_value_in(block, i, should_be);
      is_changed = true;
    }
    if (is_changed) {
      TRY(base::write_exactly(fd, block, stated.table()[first / per_block]));
    }
  }
  return base::sync_file(fd);
}

// --- refcounts written anew ---

// Behind the end of the file: the blocks that have something to state, then the table.
class Rebuild final {
 public:
  Rebuild(const base::Fd& fd, const Checker& counted)
      : fd_(fd),
        counted_(counted),
        cluster_bytes_(counted.geometry().cluster_bytes()),
        per_block_(counted.stated().entries_per_block()),
        first_new_(counted.counts().cluster_count()) {}

  Result<void> run() {
    plan();
    if (table_clusters_ * cluster_bytes_ > kMaxRefcountTableBytes) {
      return make_error(ErrorKind::unsupported, "the new refcount table would have {} bytes",
                        table_clusters_ * cluster_bytes_);
    }
    const u64 table_offset = (first_new_ + blocks_.size()) * cluster_bytes_;
    std::vector<be64> table(table_clusters_ * cluster_bytes_ / sizeof(be64));
    for (u64 i = 0; i < blocks_.size(); ++i) {
      table[blocks_[i]] = (first_new_ + i) * cluster_bytes_;
      TRY(write_block(i));
    }
    TRY(base::write_exactly(
        fd_, {reinterpret_cast<const u8*>(table.data()), table.size() * sizeof(be64)},
        table_offset));
    TRY(base::sync_file(fd_));
    TRY(switch_table(table_offset));
    return base::sync_file(fd_);
  }

 private:
  // More blocks may mean that the last of them lies in the range of one more: until it is enough.
  void plan() {
    while (true) {
      const u64 end = first_new_ + blocks_.size() + table_clusters_;
      std::vector<u64> blocks = blocks_in_use();
      for (u64 i = first_new_ / per_block_; i < base::divide_up(end, per_block_); ++i) {
        if (blocks.empty() || blocks.back() < i) blocks.push_back(i);
      }
      const u64 table_clusters =
          base::divide_up((blocks.back() + 1) * sizeof(be64), cluster_bytes_);
      const bool is_enough = blocks.size() == blocks_.size() && table_clusters == table_clusters_;
      blocks_ = std::move(blocks);
      table_clusters_ = table_clusters;
      if (is_enough) return;
    }
  }

  std::vector<u64> blocks_in_use() const {
    std::vector<u64> blocks;
    for (u64 cluster = 0; cluster < first_new_;) {
      cluster = counted_.counts().skip_unused(cluster);
      if (cluster >= first_new_) break;
      if (counted_.counts().get(cluster) == 0) {
        ++cluster;
        continue;
      }
      blocks.push_back(cluster / per_block_);
      cluster = (cluster / per_block_ + 1) * per_block_;
    }
    return blocks;
  }

  Result<void> write_block(u64 number) {
    std::vector<u8> block(cluster_bytes_);
    const u64 first = blocks_[number] * per_block_;
    const u64 end = first_new_ + blocks_.size() + table_clusters_;
    for (u64 i = 0; i < per_block_ && first + i < end; ++i) {
      const u64 count = first + i >= first_new_ ? 1 : counted_.counts().get(first + i);
      counted_.stated().set_value_in(block, i, count);
    }
    return base::write_exactly(fd_, block, (first_new_ + number) * cluster_bytes_);
  }

  // Offset and size in one write within a sector: the old structure or the new one.
  Result<void> switch_table(u64 offset) {
    struct {
      be64 refcount_table_offset;
      be32 refcount_table_clusters;
    } fields = {offset, static_cast<u32>(table_clusters_)};
    static_assert(sizeof fields == 12 && offsetof(WireHeader, refcount_table_offset) == 48);
    return base::write_exactly(fd_, {reinterpret_cast<const u8*>(&fields), sizeof fields},
                               offsetof(WireHeader, refcount_table_offset));
  }

  const base::Fd& fd_;
  const Checker& counted_;
  const u64 cluster_bytes_;
  const u64 per_block_;
  const u64 first_new_;      // cluster
  std::vector<u64> blocks_;  // indices in the table, ascending
  u64 table_clusters_ = 0;
};

Result<void> rebuild_refcounts(const base::Fd& fd) {
  Checker counted = TRY(Checker::create(fd));
  TRY(counted.count_without_refcounts());
  return Rebuild(fd, counted).run();
}

// Whether what is wrong with the refcounts can be set right in the blocks that there are.
bool has_usable_structure(const Checker& checker, const CheckReport& report) {
  if (report.bad_structures != 0 || report.check_errors != 0) return false;
  const ReferenceCounts& counts = checker.counts();
  const u64 per_block = checker.stated().entries_per_block();
  for (u64 cluster = 0; cluster < counts.cluster_count();) {
    cluster = counts.skip_unused(cluster);
    if (cluster >= counts.cluster_count()) break;
    if (counts.get(cluster) != 0 && !checker.stated().has_block(cluster / per_block)) return false;
    ++cluster;
  }
  return true;
}

// --- the rest ---

Result<void> repair_copied_flags(const base::Fd& fd, Checker& checker) {
  const auto repair = [&](const Checker::Reference& reference) -> Result<void> {
    const std::optional<bool> is_one = TRY(checker.is_stated_as_one(reference.cluster));
    if (!is_one || *is_one == ((reference.value & kCopied) != 0)) return {};
    return write_be64(fd, reference.entry_offset, reference.value ^ kCopied);
  };
  TRY(checker.for_each_reference(repair));
  return base::sync_file(fd);
}

// The dirty bit says that the refcounts may be wrong, the corrupt bit that something is.
Result<void> clear_marks(const base::Fd& fd, const WireHeader& wire) {
  const u64 marks = wire.incompatible_features & (kDirty | kCorrupt);
  if (wire.version < 3 || marks == 0) return {};
  TRY(write_be64(fd, offsetof(WireHeader, incompatible_features),
                 wire.incompatible_features & ~marks));
  return base::sync_file(fd);
}

Result<void> repair_refcounts(const base::Fd& fd, RepairScope scope) {
  Checker checker = TRY(Checker::create(fd));
  const CheckReport found = TRY(checker.run());
  if (scope == RepairScope::all) {
    if (!has_usable_structure(checker, found)) {
      // What is not counted gets no refcount: as good as freed.
      if (found.bad_references == 0) return rebuild_refcounts(fd);
      return make_error(ErrorKind::corrupt,
                        "the refcounts cannot be used, and {} entries of other tables make no "
                        "sense: nothing says what is in use",
                        found.bad_references)
          .with_hint("convert what can be read of it into a new image");
    }
    if (found.too_low_refcounts != 0) {
      TRY(adjust_refcounts(fd, checker, Direction::raise));
      // By what is in the file now, which may have become longer.
      return repair_refcounts(fd, RepairScope::leaks);
    }
  }
  const bool is_all_counted =
      found.bad_references == 0 && found.bad_structures == 0 && found.check_errors == 0;
  if (found.leaks != 0 && is_all_counted) TRY(adjust_refcounts(fd, checker, Direction::lower));
  return {};
}

u64 difference(u64 before, u64 after) { return before > after ? before - after : 0; }

}  // namespace

Result<void> clear_autoclear_bits(const base::Fd& fd) {
  const u64 file_bytes = TRY(base::file_size(fd));
  const WireHeader wire = TRY(read_header_to_check(fd, file_bytes));
  if (wire.version < 3 || wire.autoclear_features == 0) return {};
  TRY(write_be64(fd, offsetof(WireHeader, autoclear_features), 0));
  return base::sync_file(fd);
}

Result<RepairReport> repair_image(const base::Fd& fd, RepairScope scope) {
  TRY(base::sync_file(fd));  // references that are read here are durable before any refcount falls
  Checker checker = TRY(Checker::create(fd));
  const CheckReport found = TRY(checker.run());
  const bool is_sound = found.corruptions + found.leaks + found.check_errors == 0;
  if (!is_sound) {
    TRY(clear_autoclear_bits(fd));
    TRY(repair_refcounts(fd, scope));
    Checker again = TRY(Checker::create(fd));
    const CheckReport rest = TRY(again.run());
    const bool has_only_flags = rest.corruptions == rest.wrong_copied_flags;
    // What a damaged entry takes for a table may be data.
    const bool is_safe = scope == RepairScope::all ? rest.bad_references == 0 : has_only_flags;
    if (rest.wrong_copied_flags != 0 && is_safe) {
      TRY(repair_copied_flags(fd, again));
    }
  }
  RepairReport report;
  Checker last = TRY(Checker::create(fd));
  report.after = TRY(last.run());
  report.leaks_fixed = difference(found.leaks, report.after.leaks);
  report.corruptions_fixed = difference(found.corruptions, report.after.corruptions);
  if (report.after.corruptions + report.after.check_errors == 0) {
    TRY(clear_marks(fd, last.wire()));
  }
  return report;
}

}  // namespace blockdev::qcow2
