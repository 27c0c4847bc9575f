// What a qcow2 file says of each guest cluster, for counting which states a test has met. Decoded
// here anew, so that it shares no mistake with the engine.

#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

#include "blockdev/block_backend.h"
#include "vmm/base/fd.h"

namespace blockdev::test {

enum class ClusterState : u8 {
  no_table,
  unallocated,
  zero_plain,
  zero_allocated,
  normal,
  compressed,
  subclusters,            // extended L2: of several kinds
  unallocated_allocated,  // extended L2: a host cluster, and everything is below
};
inline constexpr std::array kClusterStateNames = {
    "no L2 table", "unallocated", "zero",        "zero with cluster",
    "normal",      "compressed",  "subclusters", "cluster, unallocated"};

// REQUIRES: the image is consistent.
std::vector<ClusterState> read_cluster_states(const base::Fd& fd);

// Counts pairs of a state and the first operation on it.
class ReachedStates final {
 public:
  void add(ClusterState state, BlockOp op, bool is_whole, bool has_below);
  void merge(const ReachedStates& other);
  u64 pair_count() const { return counts_.size(); }
  std::string table() const;

 private:
  std::map<std::pair<std::string, std::string>, u64> counts_;  // (state, operation)
};

}  // namespace blockdev::test
