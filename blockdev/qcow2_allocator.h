// Allocator: which host clusters are free, and whose the others are.
//
// It goes upward from behind the last cluster that has a refcount. What lies free below that is not
// used again but for what this object freed itself: a damaged image may have data there that its
// refcounts deny, and space in front of the end of a sparse file costs nothing. (A block device has
// no end to go beyond: there it goes upward from the start.) A cluster at or beyond the length that
// the file had when it was opened has never held anything: it is fresh.
//
// A reserved cluster has a refcount of 1 from then on, before any table refers to it: should the
// host fail in between, that is a leak and no damage. What a failed write gives back keeps it and
// is the first to be used again.
//
// Everything reserved is compared with where metadata lies. A hit means that the refcounts are
// wrong, and writing there would destroy the image.
//
// Refcount blocks are made at the cursor as it meets clusters without one: usually a block is then
// the first cluster that it describes (reference/qcow2.md 1.4). When the refcount table is too
// short, a new one of twice the length is reserved, and the flush moves to it.
//
// Thread: one at a time (the image's lock).

#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "blockdev/qcow2_refcount_cache.h"
#include "blockdev/writable_image.h"

namespace blockdev::qcow2 {

struct HostRun {
  u64 cluster = 0;
  u64 count = 0;
  HostState host = HostState::used;
};

// What a reservation came to.
enum class Reserved : u8 {
  yes,
  needs_block,  // read the refcount block `missing_block()` and try again
  overlap,      // the image is damaged
  no_space,     // the format has no more room
};

// Where a refcount table lies.
struct TableMove {
  u64 offset = 0;
  u64 clusters = 0;
};

class Allocator final {
 public:
  struct Start {
    u64 cursor = 0;         // where to look first
    u64 fresh_cluster = 0;  // from here on nothing was ever written
  };
  // `metadata`: clusters of header, tables and refcount blocks, sorted.
  Allocator(u32 cluster_bits, RefcountCache& refcounts, std::vector<u64> metadata, Start start,
            TableMove table);

  // Up to `wanted` clusters that lie behind each other.
  Reserved reserve(u64 wanted, HostRun& run);
  // Exactly `wanted` of them.
  Reserved reserve_all(u64 wanted, HostRun& run);
  u64 missing_block() const { return missing_block_; }
  // A refcount block was made before it is needed: linking it takes a barrier of its own, which no
  // guest should wait for. True once.
  bool take_prepared() { return std::exchange(has_prepared_, false); }
  // What was reserved and is referred to by nothing. Its refcount stays 1.
  void give_back(u64 cluster) { returned_.push_back(cluster); }
  std::vector<u64> take_returned() { return std::exchange(returned_, {}); }
  // What has a refcount of 0 again, and holds nothing that anybody may still need (I5). What lies
  // ahead of the cursor is found by it, and must not be found twice.
  void add_free(u64 cluster) {
    if (cluster < cursor_) free_.push_back(cluster);
  }

  void add_metadata(u64 cluster, u64 count);
  void remove_metadata(u64 cluster, u64 count);
  bool is_metadata(u64 cluster, u64 count) const;
  // Nothing that is in use lies at or behind this cluster.
  u64 end_cluster() const { return cursor_; }

  // Where the file's table is.
  const TableMove& table() const { return table_; }
  // Where the table in memory must go, if that is not where the file's is. The flush that takes it
  // calls move_done(), which returns where the table was until then, or move_failed().
  std::optional<TableMove> take_move();
  TableMove move_done(const TableMove& move);
  void move_failed() { is_move_taken_ = false; }

 private:
  Reserved reserve_given_back(HostRun& run);
  Reserved enlarge_table(u64 block);
  // Makes sure that the cluster at the cursor has a refcount block in memory.
  Reserved ensure_block();
  Reserved make_block_of(u64 cluster);
  void prepare_next_block();
  u64 first_unloaded(u64 cluster, u64 end) const;
  void take(u64 cluster, u64 count, HostRun& run);
  u64 skip_used(u64 cluster, u64 end) const;
  u64 count_unused(u64 cluster, u64 end) const;

  u32 cluster_bits_;
  RefcountCache& refcounts_;
  std::vector<u64> metadata_;  // sorted
  u64 cursor_;
  u64 fresh_cluster_;
  std::vector<u64> returned_;  // refcount 1
  std::vector<u64> free_;      // refcount 0
  u64 missing_block_ = 0;
  TableMove table_;
  std::optional<TableMove> move_;
  bool is_move_taken_ = false;
  bool has_prepared_ = false;
};

}  // namespace blockdev::qcow2
