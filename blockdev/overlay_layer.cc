#include "blockdev/overlay_layer.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev {
namespace {

// Entry bits: slot 16..47, zero mask 8..15, data mask 0..7.
constexpr u64 kAllZero = 0xff00;

constexpr u64 make_entry(u32 slot, u8 zero, u8 data) {
  return u64{slot} << 16 | u64{zero} << 8 | data;
}
constexpr u32 slot_of(u64 entry) { return static_cast<u32>(entry >> 16); }
constexpr u8 zero_of(u64 entry) { return static_cast<u8>(entry >> 8); }
constexpr u8 data_of(u64 entry) { return static_cast<u8>(entry); }

// The mask of the sectors in [within, within + length) of a block.
constexpr u8 sector_mask(u64 within, u64 length) {
  const u64 count = length / kSectorBytes;
  return static_cast<u8>(((u64{1} << count) - 1) << (within / kSectorBytes));
}

// Calls use(offset, length) for each part of the range that lies within one unit of `unit` bytes,
// until one returns something other than ok.
template <class Use>
BlockStatus for_each_part(u64 offset, u64 length, u64 unit, Use use) {
  while (length > 0) {
    const u64 part = std::min(length, unit - offset % unit);
    const BlockStatus status = use(offset, part);
    if (status != BlockStatus::ok) return status;
    offset += part;
    length -= part;
  }
  return BlockStatus::ok;
}

}  // namespace

Result<std::shared_ptr<OverlayLayer>> OverlayLayer::create(u64 size_bytes,
                                                           const ArenaOptions& options,
                                                           std::shared_ptr<Janitor> janitor) {
  CHECK(size_bytes > 0 && base::is_aligned(size_bytes, kSectorBytes));
  const u64 chunks = base::divide_up(size_bytes, kChunkBytes);
  // Address space only: pages of the tags and of the index cost memory when they are first used.
  base::Mapping tags = TRY(base::Mapping::anonymous(chunks * sizeof(u32)));
  base::Mapping index = TRY(base::Mapping::anonymous(chunks * kBlocksPerChunk * sizeof(u64)));
  return std::shared_ptr<OverlayLayer>(
      new OverlayLayer(size_bytes, std::move(tags), std::move(index), options, std::move(janitor)));
}

OverlayLayer::OverlayLayer(u64 size_bytes, base::Mapping tags, base::Mapping index,
                           const ArenaOptions& options, std::shared_ptr<Janitor> janitor)
    : size_bytes_(size_bytes),
      total_blocks_(base::divide_up(size_bytes, kBlockBytes)),
      tags_(std::move(tags)),
      index_(std::move(index)),
      arena_(options, std::move(janitor)) {}

BlockStatus OverlayLayer::write(u64 offset, u64 length, IovecCursor& from) {
  return for_each_part(offset, length, kChunkBytes, [&](u64 part_offset, u64 part) {
    base::MutexLock lock(lock_of(part_offset / kChunkBytes));
    return write_blocks(part_offset, part, from);
  });
}

BlockStatus OverlayLayer::write_blocks(u64 offset, u64 length, IovecCursor& from) {
  const u64 chunk = offset / kChunkBytes;
  if (chunk_state(chunk) != ChunkState::mapped) map_chunk(chunk);
  u64* entries = entries_of(chunk);
  return for_each_part(offset, length, kBlockBytes, [&](u64 part_offset, u64 part) {
    u64& entry = entries[part_offset / kBlockBytes % kBlocksPerChunk];
    return write_block(entry, part_offset % kBlockBytes, part, from);
  });
}

BlockStatus OverlayLayer::write_block(u64& entry, u64 within, u64 length, IovecCursor& from) {
  const bool is_fresh = slot_of(entry) == 0;
  u32 slot = slot_of(entry);
  BlockStatus status = is_fresh ? arena_.allocate(slot) : BlockStatus::ok;
  if (status != BlockStatus::ok) return status;
  status = arena_.write(slot, within, length, from);
  if (status != BlockStatus::ok) {
    if (is_fresh) arena_.release({&slot, 1});
    return status;
  }
  const u8 mask = sector_mask(within, length);
  if (entry == 0) block_count_.fetch_add(1, std::memory_order_relaxed);
  entry = make_entry(slot, static_cast<u8>(zero_of(entry) & ~mask),
                     static_cast<u8>(data_of(entry) | mask));
  return BlockStatus::ok;
}

// The slots that one chunk gives up.
struct OverlayLayer::Freed {
  std::array<u32, kBlocksPerChunk> slots;
  u64 count = 0;

  void add(u32 slot) {
    if (slot != 0) slots[count++] = slot;
  }
};

void OverlayLayer::write_zeroes(u64 offset, u64 length) {
  for_each_part(offset, length, kChunkBytes, [&](u64 part_offset, u64 part) {
    Freed freed;
    const u64 chunk = part_offset / kChunkBytes;
    {
      base::MutexLock lock(lock_of(chunk));
      const u64 chunk_bytes = std::min(kChunkBytes, size_bytes_ - chunk * kChunkBytes);
      if (part == chunk_bytes) {
        zero_chunk(chunk, freed);
      } else if (chunk_state(chunk) != ChunkState::zero) {
        zero_blocks(part_offset, part, freed);
      }
    }
    arena_.release(std::span(freed.slots).first(freed.count));
    return BlockStatus::ok;
  });
}

void OverlayLayer::zero_chunk(u64 chunk, Freed& freed) {
  const ChunkState state = chunk_state(chunk);
  if (state == ChunkState::zero) return;
  u64 newly_present = blocks_in_chunk(chunk);
  if (state == ChunkState::mapped) {
    for (const u64 entry : std::span(entries_of(chunk), blocks_in_chunk(chunk))) {
      if (entry != 0) --newly_present;
      freed.add(slot_of(entry));
    }
  }
  block_count_.fetch_add(newly_present, std::memory_order_relaxed);
  set_chunk_state(chunk, ChunkState::zero);
}

void OverlayLayer::zero_blocks(u64 offset, u64 length, Freed& freed) {
  const u64 chunk = offset / kChunkBytes;
  if (chunk_state(chunk) != ChunkState::mapped) map_chunk(chunk);
  u64* entries = entries_of(chunk);
  for_each_part(offset, length, kBlockBytes, [&](u64 part_offset, u64 part) {
    u64& entry = entries[part_offset / kBlockBytes % kBlocksPerChunk];
    const u8 mask = sector_mask(part_offset % kBlockBytes, part);
    const u8 data = static_cast<u8>(data_of(entry) & ~mask);
    if (data == 0) freed.add(slot_of(entry));
    if (entry == 0) block_count_.fetch_add(1, std::memory_order_relaxed);
    entry =
        make_entry(data == 0 ? 0 : slot_of(entry), static_cast<u8>(zero_of(entry) | mask), data);
    return BlockStatus::ok;
  });
}

void OverlayLayer::map_chunk(u64 chunk) {
  const u64 fill = chunk_state(chunk) == ChunkState::zero ? kAllZero : 0;
  std::fill_n(entries_of(chunk), kBlocksPerChunk, fill);
  set_chunk_state(chunk, ChunkState::mapped);
}

struct OverlayLayer::Reading {
  ByteRange& range;
  IovecCursor& to;
  const u64 max_runs;
  std::vector<ByteRange>& missing;

  void advance(u64 length) {
    range.offset += length;
    range.length -= length;
  }
  void zero(u64 length) {
    to.fill_zero(length);
    advance(length);
  }
  ReadStep miss(u64 length) {
    if (!missing.empty() && missing.back().offset + missing.back().length == range.offset) {
      missing.back().length += length;
    } else if (missing.size() < max_runs) {
      missing.push_back({range.offset, length});
    } else {
      return ReadStep::full;
    }
    to.skip(length);
    advance(length);
    return ReadStep::more;
  }
};

BlockStatus OverlayLayer::read(ByteRange& range, IovecCursor& to, u64 max_runs,
                               std::vector<ByteRange>& missing) const {
  Reading reading{range, to, max_runs, missing};
  ReadStep step = ReadStep::more;
  while (range.length > 0 && step == ReadStep::more) {
    const u64 chunk = range.offset / kChunkBytes;
    const u64 part = std::min(range.length, kChunkBytes - range.offset % kChunkBytes);
    if (chunk_state(chunk) == ChunkState::absent) {
      step = reading.miss(part);
      continue;
    }
    base::MutexLock lock(lock_of(chunk));
    step = read_chunk(reading, range.offset + part);
  }
  return step == ReadStep::io_error ? BlockStatus::io_error : BlockStatus::ok;
}

OverlayLayer::ReadStep OverlayLayer::read_chunk(Reading& reading, u64 end) const {
  ByteRange& range = reading.range;
  const u64 chunk = range.offset / kChunkBytes;
  if (chunk_state(chunk) == ChunkState::zero) {
    reading.zero(end - range.offset);
    return ReadStep::more;
  }
  const u64* entries = entries_of(chunk);
  while (range.offset < end) {
    const u64 entry = entries[range.offset / kBlockBytes % kBlocksPerChunk];
    const u64 within = range.offset % kBlockBytes;
    const u64 part = std::min(end - range.offset, kBlockBytes - within);
    const u8 wanted = sector_mask(within, part);
    if ((data_of(entry) & wanted) == wanted) {
      if (arena_.read(slot_of(entry), within, part, reading.to) != BlockStatus::ok) {
        return ReadStep::io_error;
      }
      reading.advance(part);
      continue;
    }
    const ReadStep step = read_sectors(reading, entry, range.offset + part);
    if (step != ReadStep::more) return step;
  }
  return ReadStep::more;
}

OverlayLayer::ReadStep OverlayLayer::read_sectors(Reading& reading, u64 entry, u64 end) const {
  while (reading.range.offset < end) {
    const u64 within = reading.range.offset % kBlockBytes;
    const u8 sector = sector_mask(within, kSectorBytes);
    ReadStep step = ReadStep::more;
    if ((data_of(entry) & sector) != 0) {
      if (arena_.read(slot_of(entry), within, kSectorBytes, reading.to) != BlockStatus::ok) {
        return ReadStep::io_error;
      }
      reading.advance(kSectorBytes);
    } else if ((zero_of(entry) & sector) != 0) {
      reading.zero(kSectorBytes);
    } else {
      step = reading.miss(kSectorBytes);
    }
    if (step != ReadStep::more) return step;
  }
  return ReadStep::more;
}

void OverlayLayer::drop() {
  arena_.drop();
  block_count_.store(0, std::memory_order_relaxed);
  if (++epoch_ < u32{1} << 30) return;
  // Once in 2^30 reverts. Fresh pages read as epoch 0, which is never current.
  epoch_ = 1;
  std::memset(tags_.data(), 0, tags_.size_bytes());
}

// --- a sealed layer: nobody writes, so nothing is locked -------------------------------------

Result<Extent> OverlayLayer::map(u64 offset, u64 length) const {
  const u64 end = std::min(size_bytes_, base::checked_add(offset, length).value_or(size_bytes_));
  const ExtentKind kind = sector_kind(offset / kSectorBytes);
  u64 at = base::align_down(offset, kSectorBytes);
  while (at < end) {
    const ChunkState state = chunk_state(at / kChunkBytes);
    if (sector_kind(at / kSectorBytes) != kind) break;
    at = base::align_down(at, kSectorBytes) + kSectorBytes;
    if (state != ChunkState::mapped) at = base::align_up(at, kChunkBytes);
  }
  return Extent{.kind = kind, .length_bytes = std::min(at, end) - offset};
}

Result<void> OverlayLayer::read_computed(u64 offset, u64 length, IovecCursor& to,
                                         ReadScratch&) const {
  const BlockStatus status =
      for_each_part(offset, length, kBlockBytes, [&](u64 part_offset, u64 part) {
        const u64 block = part_offset / kBlockBytes;
        const u64 entry = entries_of(block / kBlocksPerChunk)[block % kBlocksPerChunk];
        return arena_.read(slot_of(entry), part_offset % kBlockBytes, part, to);
      });
  if (status == BlockStatus::ok) return {};
  return make_error(ErrorKind::failed, "read from the overlay's spill file failed");
}

ExtentKind OverlayLayer::sector_kind(u64 sector) const {
  const u64 block = sector / (kBlockBytes / kSectorBytes);
  switch (chunk_state(block / kBlocksPerChunk)) {
    case ChunkState::absent: return ExtentKind::below;
    case ChunkState::zero: return ExtentKind::zero;
    case ChunkState::mapped: break;
  }
  const u64 entry = entries_of(block / kBlocksPerChunk)[block % kBlocksPerChunk];
  const u8 bit = static_cast<u8>(1u << (sector % (kBlockBytes / kSectorBytes)));
  if ((data_of(entry) & bit) != 0) return ExtentKind::computed;
  return (zero_of(entry) & bit) != 0 ? ExtentKind::zero : ExtentKind::below;
}

OverlayLayer::BlockRun OverlayLayer::block_run(u64 block) const {
  const u64 chunk = block / kBlocksPerChunk;
  const u64 end = chunk * kBlocksPerChunk + blocks_in_chunk(chunk);
  const base::MutexLock lock(lock_of(chunk));
  BlockRun run{block_state(block), 1};
  const bool is_uniform = chunk_state(chunk) != ChunkState::mapped;
  while (block + run.count < end && (is_uniform || block_state(block + run.count) == run.state)) {
    ++run.count;
  }
  return run;
}

BlockState OverlayLayer::block_state(u64 block) const {
  const u64 chunk = block / kBlocksPerChunk;
  if (chunk_state(chunk) == ChunkState::absent) return BlockState::absent;
  if (chunk_state(chunk) == ChunkState::zero) return BlockState::zero;
  const u64 entry = entries_of(chunk)[block % kBlocksPerChunk];
  if (entry == 0) return BlockState::absent;
  // The last block of the disk may have fewer sectors than eight.
  const u64 bytes = std::min<u64>(kBlockBytes, size_bytes_ - block * kBlockBytes);
  const u8 all = sector_mask(0, bytes);
  if ((zero_of(entry) & all) == all) return BlockState::zero;
  const u8 known = static_cast<u8>(zero_of(entry) | data_of(entry));
  return (known & all) == all ? BlockState::data : BlockState::partial;
}

u64 OverlayLayer::next_present_block(u64 block) const {
  while (block < total_blocks_) {
    if (chunk_state(block / kBlocksPerChunk) == ChunkState::absent) {
      block = base::align_down(block, kBlocksPerChunk) + kBlocksPerChunk;
    } else if (block_state(block) == BlockState::absent) {
      ++block;
    } else {
      return block;
    }
  }
  return total_blocks_;
}

// --- the index -------------------------------------------------------------------------------

OverlayLayer::ChunkState OverlayLayer::chunk_state(u64 chunk) const {
  // Pairs with the release below: who sees `mapped` sees the entries that map_chunk() cleared.
  u32& tag = reinterpret_cast<u32*>(tags_.data())[chunk];
  const u32 value = std::atomic_ref(tag).load(std::memory_order_acquire);
  return value >> 2 == epoch_ ? static_cast<ChunkState>(value & 3) : ChunkState::absent;
}

void OverlayLayer::set_chunk_state(u64 chunk, ChunkState state) {
  u32& tag = reinterpret_cast<u32*>(tags_.data())[chunk];
  std::atomic_ref(tag).store(epoch_ << 2 | static_cast<u32>(state), std::memory_order_release);
}

u64* OverlayLayer::entries_of(u64 chunk) const {
  return reinterpret_cast<u64*>(index_.data()) + chunk * kBlocksPerChunk;
}

u64 OverlayLayer::blocks_in_chunk(u64 chunk) const {
  return std::min<u64>(kBlocksPerChunk, total_blocks_ - chunk * kBlocksPerChunk);
}

}  // namespace blockdev
