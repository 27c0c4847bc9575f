// ModelDisk: what a disk must hold, as plain bytes. Obviously right, and slow.

#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "vmm/base/types.h"

namespace blockdev::test {

struct ModelDisk {
  std::vector<u8> bytes;

  void write(u64 offset, std::span<const u8> data) {
    std::copy(data.begin(), data.end(), bytes.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  void zero(u64 offset, u64 length) {
    std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset), length, u8{0});
  }
};

}  // namespace blockdev::test
