// Stamps: the content of a sector as one number.
//
// Every sector that a test writes is filled from a stamp of its own, so that a model of a disk is a
// number for each sector, and a sector read back says which write it came from, or that it came
// from none.
//
// Invariant: stamp 0 is a sector of zeros.

#pragma once

#include <cstring>
#include <span>

#include "blockdev/block_backend.h"

namespace blockdev::test {

using Stamp = u64;
inline constexpr Stamp kZeroStamp = 0;
inline constexpr Stamp kForeignStamp = ~u64{0};  // no stamp has this content

inline u64 stamp_word(Stamp stamp, u64 index) {
  return stamp == kZeroStamp ? 0 : stamp ^ (index * 0x9e3779b97f4a7c15);
}

// REQUIRES: `bytes` is whole sectors. All of them get the same stamp.
inline void fill_stamp(std::span<u8> bytes, Stamp stamp) {
  for (u64 at = 0; at < bytes.size(); at += 8) {
    const u64 word = stamp_word(stamp, at % kSectorBytes / 8);
    std::memcpy(bytes.data() + at, &word, 8);
  }
}

// REQUIRES: `sector` is one sector.
inline Stamp stamp_of(std::span<const u8> sector) {
  Stamp stamp = 0;
  std::memcpy(&stamp, sector.data(), 8);
  if (stamp == kForeignStamp) return kForeignStamp;
  for (u64 index = 1; index < kSectorBytes / 8; ++index) {
    u64 word = 0;
    std::memcpy(&word, sector.data() + index * 8, 8);
    if (word != stamp_word(stamp, index)) return kForeignStamp;
  }
  return stamp;
}

}  // namespace blockdev::test
