// SpillFile: slots for what does not fit in memory, in a file without a name, which is gone when it
// is closed, also by a crash.
//
// The newest slots lie in memory and go to the file many at a time, front to back: a write for each
// costs three times as much. The file is only ever touched with pread and pwrite: a host without
// space is then a status and not a SIGBUS.
//
// Thread: all calls from any thread. Who owns a slot decides who moves data in it.

#pragma once

#include <memory>
#include <string>

#include "blockdev/io_engine.h"
#include "blockdev/iovec_cursor.h"
#include "vmm/base/fd.h"
#include "vmm/base/mutex.h"
#include "vmm/base/result.h"

namespace blockdev {

inline constexpr u64 kSlotBytes = 4096;

class SpillFile final {
 public:
  static Result<std::unique_ptr<SpillFile>> create(const std::string& directory);

  // Each returns 0 or an errno. Slots number 0...

  // Makes room for the slots up to this one: as many as the window has, the others must be in the
  // file.
  int extend_to(u64 slot);
  int write(u64 slot, u64 within, u64 length, IovecCursor& from);
  int read(u64 slot, u64 within, u64 length, IovecCursor& to);
  // Best effort: gives the space of slots in the file back to the host.
  void give_back(u64 first_slot, u64 count);

 private:
  static constexpr u64 kWindowSlots = 64;
  static constexpr u64 kBatchSlots = 16;  // divides kWindowSlots
  static_assert(kWindowSlots % kBatchSlots == 0);

  SpillFile(base::Fd fd, base::Mapping window) : fd_(std::move(fd)), window_(std::move(window)) {}
  // Null: the slot is in the file, and stays there.
  u8* in_window(u64 slot) REQUIRES_LOCK(mutex_) {
    return slot < first_ ? nullptr : window_.data() + slot % kWindowSlots * kSlotBytes;
  }
  // Between the file and memory.
  int move(IoKind kind, u64 offset, u64 length, IovecCursor& buffers);

  const base::Fd fd_;
  const base::Mapping window_;
  base::Mutex mutex_;
  u64 first_ GUARDED_BY(mutex_) = 0;  // slots from here on are in the window
};

// The file itself.
Result<base::Fd> open_spill_file(const std::string& directory);

// What the above does on file systems without O_TMPFILE: makes a file with a name and takes the
// name away.
Result<base::Fd> open_unlinked_file(const std::string& directory);

}  // namespace blockdev
