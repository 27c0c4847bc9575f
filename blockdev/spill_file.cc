#include "blockdev/spill_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "blockdev/io_transfer.h"
#include "blockdev/sync_engine.h"

namespace blockdev {

Result<std::unique_ptr<SpillFile>> SpillFile::create(const std::string& directory) {
  base::Fd fd = TRY(open_spill_file(directory));
  base::Mapping window = TRY(base::Mapping::anonymous(kWindowSlots * kSlotBytes));
  return std::unique_ptr<SpillFile>(new SpillFile(std::move(fd), std::move(window)));
}

int SpillFile::extend_to(u64 slot) {
  base::MutexLock lock(mutex_);
  while (slot >= first_ + kWindowSlots) {
    const iovec batch{in_window(first_), kBatchSlots * kSlotBytes};
    const int error = run_now({IoKind::write, fd_.get(), first_ * kSlotBytes, {&batch, 1}, 0});
    if (error != 0) return error;
    first_ += kBatchSlots;
  }
  return 0;
}

int SpillFile::write(u64 slot, u64 within, u64 length, IovecCursor& from) {
  {
    base::MutexLock lock(mutex_);
    if (u8* const memory = in_window(slot); memory != nullptr) {
      from.copy_out(memory + within, length);
      return 0;
    }
  }
  return move(IoKind::write, slot * kSlotBytes + within, length, from);
}

int SpillFile::read(u64 slot, u64 within, u64 length, IovecCursor& to) {
  {
    base::MutexLock lock(mutex_);
    if (const u8* const memory = in_window(slot); memory != nullptr) {
      to.copy_in(memory + within, length);
      return 0;
    }
  }
  return move(IoKind::read, slot * kSlotBytes + within, length, to);
}

int SpillFile::move(IoKind kind, u64 offset, u64 length, IovecCursor& buffers) {
  int error = 0;
  buffers.consume(length, [&](u8* data, u64 size) {
    const iovec piece{data, size};
    if (error == 0) error = run_now({kind, fd_.get(), offset, {&piece, 1}, 0});
    offset += size;
  });
  return error;
}

void SpillFile::give_back(u64 first_slot, u64 count) {
  ::fallocate(fd_.get(), kPunchMode, static_cast<off_t>(first_slot * kSlotBytes),
              static_cast<off_t>(count * kSlotBytes));
}

Result<base::Fd> open_spill_file(const std::string& directory) {
  Result<base::Fd> file = base::open_file(directory, O_TMPFILE | O_RDWR);
  // Which error says "not on this file system" depends on it (open(2), O_TMPFILE: EOPNOTSUPP,
  // EISDIR, ENOENT; FUSE has more), so all but a full disk are tried the other way.
  if (file || file.error().kind() == ErrorKind::no_space) return file;
  return open_unlinked_file(directory);
}

Result<base::Fd> open_unlinked_file(const std::string& directory) {
  std::string name = directory + "/quicksave-XXXXXX";
  base::Fd file(::mkostemp(name.data(), O_CLOEXEC));
  if (!file) return errno_error("make a file in \"{}\"", directory);
  if (::unlink(name.c_str()) != 0) return errno_error("unlink \"{}\"", name);
  return file;
}

}  // namespace blockdev
