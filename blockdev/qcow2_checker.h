// Checker: one pass over all of an image's tables, counting references (qcow2_check.h says what
// for). Who repairs what was found needs more than the report: the counts, and the places of the
// entries.
//
// Thread: one.

#pragma once

#include <functional>
#include <optional>

#include "blockdev/qcow2_check.h"
#include "blockdev/qcow2_map.h"
#include "blockdev/qcow2_refcounts.h"
#include "blockdev/qcow2_snapshots.h"

namespace blockdev::qcow2 {

class Checker final {
 public:
  // `fd` outlives the checker.
  static Result<Checker> create(const base::Fd& fd);

  // All of a check. Call one of the two, once.
  Result<CheckReport> run();
  // Only counts what refers to clusters without the refcount structures, which may be garbage.
  // A value: that many corruptions were found.
  Result<u64> count_without_refcounts();

  const WireHeader& wire() const { return wire_; }
  const Geometry& geometry() const { return geometry_; }
  const StatedRefcounts& stated() const { return stated_; }
  const ReferenceCounts& counts() const { return counts_; }

  // An entry of the active tables that refers to a cluster; compressed ones are left out.
  struct Reference {
    u64 entry_offset = 0;  // in the file
    u64 value = 0;
    u64 cluster = 0;
    std::string_view table;  // "L1", "L2"
  };
  Result<void> for_each_reference(const std::function<Result<void>(const Reference&)>& use);
  // Whether the image states that the cluster is referred to once; nothing: it states nothing that
  // could be read. After run().
  Result<std::optional<bool>> is_stated_as_one(u64 cluster) const;

 private:
  // Whose tables these are: the active ones give the figures of fragmentation.
  enum class Owner : u8 { disk, snapshot };

  Checker(const base::Fd& fd, u64 file_bytes, const WireHeader& wire, StatedRefcounts stated);

  Result<void> count_references(const SnapshotTable& snapshots);
  Result<void> count_snapshot(u64 index, const Snapshot& snapshot);
  Result<void> count_l1(u64 offset, u64 count, Owner owner);
  Result<void> count_l2(u64 offset, Owner owner);
  Result<void> count_compressed(const ClusterEntry& cluster, Owner owner);
  Result<void> count_data(const ClusterEntry& cluster, Owner owner, u64& contiguous_at);
  Result<void> count_refcount_structures();
  Result<void> compare();
  void tell_difference(u64 cluster, u64 stated, u64 counted);
  Result<void> check_copied_flags();
  // One more reference to each cluster of the range. The last one may be in the file in part.
  // `kind`: what it is if the range cannot be.
  Result<void> use(u64 offset, u64 bytes, std::string_view name, u64 CheckReport::*kind);
  Result<std::vector<be64>> read_table(u64 offset, u64 count, std::string_view name) const;
  Result<void> read_l2(u64 offset);
  ClusterEntry entry(u64 index) const;

  u64 index_of(u64 offset) const { return offset >> geometry_.cluster_bits(); }
  u64 index_offset(u64 offset) const { return offset & (geometry_.cluster_bytes() - 1); }

  template <class... Args>
  void corruption(u64 CheckReport::*kind, fmt::format_string<Args...> format, Args&&... args) {
    ++report_.corruptions;
    ++(report_.*kind);
    if (report_.findings.size() < CheckReport::kMaxFindings) {
      note("corrupt: " + fmt::format(format, std::forward<Args>(args)...));
    }
  }
  void bad_entry(const ClusterEntry& cluster, std::string_view why);
  void note(std::string text);

  const base::Fd* fd_;
  u64 file_bytes_;
  WireHeader wire_;
  Geometry geometry_;
  StatedRefcounts stated_;
  ReferenceCounts counts_;
  std::vector<be64> l2_;
  CheckReport report_;
};

}  // namespace blockdev::qcow2
