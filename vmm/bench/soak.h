// `quicksave soak`: one VM, one snapshot, thousands of reverts to it, each with every byte of memory,
// every register, every device and the disk compared afterwards, while the guest changes all of them
// in between and checks itself; and whether the process grew.
//
// Thread: the main thread, and nothing else runs in the process.

#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/bench/samples.h"

namespace bench {

// `arguments` are those after "soak". The exit status: 0 when all reverts were right and nothing
// grew, else 1, with an error that says which.
int soak_main(const std::vector<std::string>& arguments);

// What the process holds, looked at after a revert.
struct SoakSample {
  u64 revert = 0;
  u64 own_bytes = 0;  // resident, beside the guest's memory and its images
  u64 descriptors = 0;
};

struct SoakReport {
  u64 reverts = 0;
  u64 memory_bytes = 0;
  double seconds = 0;
  std::vector<SoakSample> samples;

  // Of the samples' later nine tenths: in the first, buffers find their size.
  double bytes_per_revert() const;
  // Grown: more descriptors at the end than after the first tenth, or resident memory whose line
  // rises by more than kAllowedGrowthBytes over the whole soak. The Error names which.
  Result<void> check_growth() const;
  std::string to_text() const;
  nlohmann::json to_json() const;
};

// What the pages of a heap and of stacks come and go by; a leak of 64 bytes a revert is 640 KiB in
// 10,000.
inline constexpr u64 kAllowedGrowthBytes = 512 * base::kKiB;

}  // namespace bench
