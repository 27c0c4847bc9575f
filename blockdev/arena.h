// Arena: room for 4 KiB slots, in memory up to a limit, in an unlinked file beyond it.
//
// Memory comes in segments of 16 MiB, mapped when first needed, so that a dropped arena can hand
// all but a few of them to the janitor by moving pointers. The file (spill_file.h) is made when first
// needed.
//
// Slots number 1..; 0 means none. Slots up to the limit lie in memory, the others in the file.
//
// Thread: all calls from any thread, except drop(). Who owns a slot (the layer's chunk lock)
// decides who may move data in it.

#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "blockdev/block_backend.h"
#include "blockdev/iovec_cursor.h"
#include "blockdev/janitor.h"
#include "blockdev/spill_file.h"
#include "vmm/base/fd.h"
#include "vmm/base/log.h"
#include "vmm/base/mutex.h"

namespace blockdev {

struct ArenaOptions {
  u64 memory_limit_bytes = 0;
  u64 keep_bytes = 0;
  std::string spill_directory;
};

class Arena final {
 public:
  Arena(const ArenaOptions& options, std::shared_ptr<Janitor> janitor);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // no_space when the host has no memory or no file space for another slot.
  BlockStatus allocate(u32& slot);
  // Gives slots back, and sorts them; the host gets the memory of runs of them.
  void release(std::span<u32> slots);

  // REQUIRES: the slot is allocated, within + length <= kSlotBytes.
  BlockStatus write(u32 slot, u64 within, u64 length, IovecCursor& from);
  BlockStatus read(u32 slot, u64 within, u64 length, IovecCursor& to) const;

  // All slots are free again. REQUIRES: nobody else uses the arena.
  void drop();

 private:
  static constexpr u64 kSegmentBytes = 16 * base::kMiB;
  static constexpr u64 kSlotsPerSegment = kSegmentBytes / kSlotBytes;

  bool is_in_memory(u32 slot) const { return slot <= memory_slots_; }
  u8* memory_of(u32 slot) const;
  u64 in_file(u32 slot) const { return u64{slot} - 1 - memory_slots_; }  // as SpillFile numbers
  BlockStatus make_room(u32 slot) REQUIRES_LOCK(mutex_);
  BlockStatus start_spilling() REQUIRES_LOCK(mutex_);
  void give_back(u32 first_slot, u64 count) const;

  const ArenaOptions options_;
  const u64 memory_slots_;
  const std::shared_ptr<Janitor> janitor_;
  mutable base::Mutex mutex_;
  std::vector<base::Mapping> mappings_ GUARDED_BY(mutex_);
  std::vector<u32> free_ GUARDED_BY(mutex_);
  u64 next_ GUARDED_BY(mutex_) = 1;  // slots from here on were never used since drop()
  std::unique_ptr<SpillFile> spill_ GUARDED_BY(mutex_);
  base::RateLimit log_limit_{3};  // a guest writes as often as it likes
  // Readable without the mutex; set under it, before a slot in them is handed out.
  std::vector<std::atomic<u8*>> segments_;
  std::atomic<SpillFile*> spill_in_use_{nullptr};  // spill_
};

}  // namespace blockdev
