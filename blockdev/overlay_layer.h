// OverlayLayer: content written by the guest, in memory, with its own state for each sector.
//
// The disk is divided into chunks of 2 MiB (512 blocks of 4 KiB). A chunk is absent, zero as a
// whole, or mapped: then one page of the index holds an entry for each block:
//
//   entry = slot:32 | zero:8 | data:8      masks with one bit for each 512-byte sector
//
// A sector is data (in the block's slot of the arena), zero, or neither (look below). A partial
// write therefore never reads what is below, and giving back the whole disk touches one tag for
// each chunk. Tags carry an epoch: drop() raises it, so that all chunks are absent at once,
// whatever was written; an index page is cleared when its chunk is next mapped.
//
// A mutex, shared by every 64th chunk, covers the tag, the entries and the data of a chunk. That is
// what makes concurrent writes to one sector leave one of them and not a mixture: publishing masks
// with atomics alone cannot, and lets a slot be reused under a reader. Absent chunks, the usual
// case over a base image, are skipped without it.
//
// Invariant: a sector is visible only after its data is in the slot.
// Thread: all calls from any thread, except drop().

#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "blockdev/arena.h"
#include "blockdev/block_backend.h"
#include "blockdev/layer.h"
#include "vmm/base/fd.h"
#include "vmm/base/mutex.h"

namespace blockdev {

inline constexpr u32 kBlockBytes = 4096;
inline constexpr u32 kBlocksPerChunk = 512;
inline constexpr u64 kChunkBytes = u64{kBlockBytes} * kBlocksPerChunk;

enum class BlockState : u8 { absent, zero, partial, data };

class OverlayLayer final : public Layer {
 public:
  static Result<std::shared_ptr<OverlayLayer>> create(u64 size_bytes, const ArenaOptions& options,
                                                      std::shared_ptr<Janitor> janitor);

  u64 size_bytes() const override { return size_bytes_; }
  // REQUIRES for map() and read_computed(): sealed, that is, nobody writes any more.
  Result<Extent> map(u64 offset, u64 length) const override;
  Result<void> read_computed(u64 offset, u64 length, IovecCursor& to,
                             ReadScratch& scratch) const override;

  // REQUIRES for the three below: a range of whole sectors within the disk.
  BlockStatus write(u64 offset, u64 length, IovecCursor& from);
  void write_zeroes(u64 offset, u64 length);
  // Copies what the layer has, appends to `missing` (in order) what it has not, and takes both off
  // the front of `range`, until that is empty or `missing` would get more than `max_runs` entries.
  BlockStatus read(ByteRange& range, IovecCursor& to, u64 max_runs,
                   std::vector<ByteRange>& missing) const;

  // A block and those after it that are in the same state, at most to the end of its chunk.
  struct BlockRun {
    BlockState state;
    u64 count;
  };
  // Also while others write.
  BlockRun block_run(u64 block) const;

  // REQUIRES for the two below: sealed.
  BlockState block_state(u64 block) const;
  // A block that is not absent, or the first one past the end, at or after `block`, skipping
  // absent chunks at once.
  u64 next_present_block(u64 block) const;
  u64 block_count() const { return block_count_.load(std::memory_order_relaxed); }  // not absent
  u64 volatile_block_count() const override { return block_count(); }
  u64 total_blocks() const { return total_blocks_; }

  // Forgets everything. Memory beyond the arena's keep limit goes back off this thread.
  // REQUIRES: nobody else uses the layer.
  void drop();

 private:
  enum class ChunkState : u32 { absent = 0, zero = 1, mapped = 2 };
  enum class ReadStep : u8 { more, full, io_error };
  struct Reading;
  struct Freed;

  OverlayLayer(u64 size_bytes, base::Mapping tags, base::Mapping index, const ArenaOptions& options,
               std::shared_ptr<Janitor> janitor);

  ChunkState chunk_state(u64 chunk) const;
  void set_chunk_state(u64 chunk, ChunkState state);
  u64* entries_of(u64 chunk) const;
  u64 blocks_in_chunk(u64 chunk) const;
  ExtentKind sector_kind(u64 sector) const;

  // With the chunk's lock held, on a range within it.
  void map_chunk(u64 chunk);
  void zero_chunk(u64 chunk, Freed& freed);
  void zero_blocks(u64 offset, u64 length, Freed& freed);
  BlockStatus write_blocks(u64 offset, u64 length, IovecCursor& from);
  BlockStatus write_block(u64& entry, u64 within, u64 length, IovecCursor& from);
  ReadStep read_chunk(Reading& reading, u64 end) const;
  ReadStep read_sectors(Reading& reading, u64 entry, u64 end) const;

  base::Mutex& lock_of(u64 chunk) const { return locks_[chunk % kLockCount].mutex; }

  static constexpr u64 kLockCount = 64;
  struct alignas(64) PaddedMutex {
    base::Mutex mutex;
  };

  const u64 size_bytes_;
  const u64 total_blocks_;
  base::Mapping tags_;   // u32 for each chunk: epoch << 2 | ChunkState
  base::Mapping index_;  // u64 for each block
  Arena arena_;
  u32 epoch_ = 1;
  std::atomic<u64> block_count_{0};
  mutable std::array<PaddedMutex, kLockCount> locks_;
};

using SealedLayer = OverlayLayer;
using SealedPointer = std::shared_ptr<const SealedLayer>;

}  // namespace blockdev
