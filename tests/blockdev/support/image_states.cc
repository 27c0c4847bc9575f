#include "tests/blockdev/support/image_states.h"

#include <fmt/format.h>

#include <set>

#include "vmm/base/check.h"
#include "vmm/base/wire.h"

namespace blockdev::test {
namespace {

u64 read_be64(const base::Fd& fd, u64 offset) {
  be64 value;
  if (offset + 8 > base::file_size(fd).value()) return 0;
  CHECK(base::read_exactly(fd, {reinterpret_cast<u8*>(&value), 8}, offset).has_value());
  return value;
}
u32 read_be32(const base::Fd& fd, u64 offset) {
  return static_cast<u32>(read_be64(fd, offset) >> 32);
}

ClusterState state_of(u64 entry, u64 bitmap, bool is_extended) {
  if ((entry & (u64{1} << 62)) != 0) return ClusterState::compressed;
  const bool has_host = (entry & 0x00fffffffffffe00) != 0;
  if (!is_extended) {
    if ((entry & 1) != 0) return has_host ? ClusterState::zero_allocated : ClusterState::zero_plain;
    return has_host ? ClusterState::normal : ClusterState::unallocated;
  }
  const u32 allocated = static_cast<u32>(bitmap);
  const u32 zero = static_cast<u32>(bitmap >> 32);
  if (allocated == ~u32{0}) return ClusterState::normal;
  if (zero == ~u32{0}) return has_host ? ClusterState::zero_allocated : ClusterState::zero_plain;
  if (bitmap != 0) return ClusterState::subclusters;
  return has_host ? ClusterState::unallocated_allocated : ClusterState::unallocated;
}

}  // namespace

std::vector<ClusterState> read_cluster_states(const base::Fd& fd) {
  const u32 cluster_bits = read_be32(fd, 20);
  const u64 cluster = u64{1} << cluster_bits;
  const u64 size = read_be64(fd, 24);
  const u64 l1 = read_be64(fd, 40);
  const bool is_extended = (read_be64(fd, 72) & 0x10) != 0;
  const u64 entry_bytes = is_extended ? 16 : 8;
  const u64 entries = cluster / entry_bytes;
  std::vector<ClusterState> states;
  for (u64 index = 0; index * cluster < size; ++index) {
    const u64 l2 = read_be64(fd, l1 + index / entries * 8) & 0x00fffffffffffe00;
    if (l2 == 0) {
      states.push_back(ClusterState::no_table);
      continue;
    }
    const u64 at = l2 + index % entries * entry_bytes;
    const u64 bitmap = is_extended ? read_be64(fd, at + 8) : 0;
    states.push_back(state_of(read_be64(fd, at), bitmap, is_extended));
  }
  return states;
}

void ReachedStates::add(ClusterState state, BlockOp op, bool is_whole, bool has_below) {
  constexpr const char* kOps[] = {"read", "write", "flush", "discard", "zeroes"};
  ++counts_[{std::string(kClusterStateNames[u64(state)]) + (has_below ? " over data" : ""),
             std::string(kOps[u64(op)]) + (is_whole ? "" : " part")}];
}

void ReachedStates::merge(const ReachedStates& other) {
  for (const auto& [pair, count] : other.counts_) counts_[pair] += count;
}

std::string ReachedStates::table() const {
  std::set<std::string> operations;
  std::set<std::string> states;
  for (const auto& [pair, count] : counts_) {
    states.insert(pair.first);
    operations.insert(pair.second);
  }
  std::string text = fmt::format("{:32}", "state \\ operation");
  for (const std::string& operation : operations) text += fmt::format("{:>14}", operation);
  for (const std::string& state : states) {
    text += fmt::format("\n{:32}", state);
    for (const std::string& operation : operations) {
      const auto found = counts_.find({state, operation});
      text += fmt::format("{:>14}", found == counts_.end() ? 0 : found->second);
    }
  }
  return text;
}

}  // namespace blockdev::test
