// Copying and comparing disks, whatever kinds of images they are in.
//
// What is known to read as zeros is not read. What is read is looked at: zeros become holes.
//
// Memory: two pieces of ImageSink::kPieceBytes.
// Thread: one.

#pragma once

#include <functional>
#include <limits>
#include <optional>

#include "blockdev/chain_reader.h"
#include "blockdev/image_sink.h"

namespace blockdev {

// Told from time to time how far a long job is.
using Progress = std::function<void(u64 done_bytes, u64 total_bytes)>;

// Which zeros are found out, and become holes or are left out of the copy.
enum class FindZeros : u8 {
  no,
  known,  // those of which the source says so
  yes,    // in what is read too
};
// What the source has nowhere.
enum class Absent : u8 {
  reads_as_zeros,
  stays_below,  // is what the target shows already
};

struct CopyJob {
  static constexpr u64 kNothingShared = std::numeric_limits<u64>::max();

  const LayerList* source = nullptr;
  // What lies below the target: a granule that reads the same there is left out; empty: nothing
  // does, which reads as zeros. Null: it is not asked.
  const LayerList* below = nullptr;
  // So many layers of the source are the target's own: what they have is left out.
  // REQUIRES: a granule is in one of them as a whole or not at all.
  u64 own_layers = 0;
  // Layers of the source from this depth on lie below the target too, and are not even read.
  u64 shared_from = kNothingShared;
  FindZeros find_zeros = FindZeros::yes;
  // `stays_below`: only with granules of one sector, which are of one kind.
  Absent absent = Absent::reads_as_zeros;
  Progress progress;  // may be empty
};

Result<void> copy_disk(const CopyJob& job, ImageSink& sink);

struct Comparison {
  // The first sector that differs. Where one disk is longer, the rest of it has to be zeros.
  std::optional<u64> first_difference;
};
Result<Comparison> compare_disks(const LayerList& first, const LayerList& second,
                                 const Progress& progress);

}  // namespace blockdev
