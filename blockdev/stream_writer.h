// StreamWriter: a file written once from front to back, with holes, and its checksum.
//
// Invariant: the checksum covers what a reader of the whole file would see, holes as zeros.
// Thread: one.

#pragma once

// Compiled in: the hash is a few hundred lines, and this is the only user in the library.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <memory>
#include <span>
#include <vector>

#include "vmm/base/fd.h"

namespace blockdev {

class StreamWriter final {
 public:
  explicit StreamWriter(const base::Fd& fd);

  Result<void> append(std::span<const u8> bytes);
  // Leaves a hole up to `offset`. REQUIRES: offset >= this->offset().
  Result<void> skip_to(u64 offset);
  // Writes what is still in memory and gives the file its size.
  Result<void> finish();

  u64 offset() const { return offset_; }
  u64 checksum() const;

 private:
  Result<void> write_out();

  const base::Fd& fd_;
  std::vector<u8> buffer_;  // the last bytes before offset_, not written yet
  u64 offset_ = 0;
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> hash_;
};

}  // namespace blockdev
