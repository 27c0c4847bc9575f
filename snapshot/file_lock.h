// Open-file-description locks on whole files (fcntl(2), F_OFD_SETLK): they belong to the open file,
// so that a process that is killed leaves none, and two descriptors in one process do exclude each
// other.

#pragma once

#include <string>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace snapshot {

enum class LockMode : u8 { shared, exclusive };
enum class LockWait : u8 { no, yes };

// Takes the lock, or turns the one that is held into `mode`. Busy is ErrorKind::busy.
// REQUIRES: `file` is open for reading and writing.
Result<void> lock_file(const base::Fd& file, LockMode mode, LockWait wait);

// Whether somebody else holds a lock of any mode. `file` may be open for reading only.
Result<bool> is_locked(const base::Fd& file);

// The processes that have the file open, as text: "process 17 (quicksave)". Locks of this kind do
// not tell their owner, so this looks through /proc; empty when it sees nobody.
std::string users_of_file(const std::string& path);

}  // namespace snapshot
