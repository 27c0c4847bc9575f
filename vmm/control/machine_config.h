// MachineConfig: what a user asks for with `run`, and what a snapshot remembers of it.
//
// Its JSON form stands in the VM's directory, in `inspect` and in every manifest. Unknown keys,
// wrong types and values outside the limits are refused with the key's name.

#pragma once

#include <nlohmann/json_fwd.hpp>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace control {

inline constexpr u32 kMaximumCpus = 64;
inline constexpr u32 kMaximumDisks = 12;
inline constexpr u64 kMinimumMemoryBytes = 2 * base::kMiB;
inline constexpr u64 kMaximumMemoryBytes = 64 * base::kGiB;

// How the guest's clock goes on after a revert or restore: with real time, or from the snapshot.
enum class ClockPolicy : u8 { realtime, frozen };

// What a host that is out of space does to the guest.
enum class NoSpacePolicy : u8 { pause, error };

std::string_view name_of(ClockPolicy policy);
std::string_view name_of(NoSpacePolicy policy);
Result<ClockPolicy> parse_clock_policy(std::string_view text);
Result<NoSpacePolicy> parse_no_space_policy(std::string_view text);

struct MachineConfig {
  std::string kernel;  // absolute paths
  std::optional<std::string> initrd;
  std::string append;  // the whole kernel command line
  u64 memory_bytes = 512 * base::kMiB;
  u32 cpus = 1;
  std::vector<std::string> disks;  // --disk arguments, with absolute file names
  NoSpacePolicy on_enospc = NoSpacePolicy::pause;

  Result<void> validate() const;
  nlohmann::json to_json() const;
  static Result<MachineConfig> from_json(const nlohmann::json&);

  friend bool operator==(const MachineConfig&, const MachineConfig&) = default;
};

}  // namespace control
