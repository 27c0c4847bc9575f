// The lock that QEMU and its tools take on an image, taken the same way, so that either side
// refuses what would corrupt the other.
//
// QEMU block/file-posix.c ("RAW_PERM" and "RAW_LOCK_PERM_BASE"): open-file-description locks, all
// shared, on single bytes. Byte 100 + n: permission n is used. Byte 200 + n: permission n is not
// shared with others. A conflict is found by testing the opposite byte for an exclusive lock.
// Permissions: 0 consistent read, 1 write, 2 write unchanged, 3 resize. A reader takes 100, 201 and
// 203; a writer 100, 101, 103, 201 and 203, as QEMU's own do.
//
// The lock lives as long as the open file description, also beyond in-flight io_uring requests.

#pragma once

#include <string>

#include "vmm/base/fd.h"

namespace blockdev {

// Says that the image is read and must not be written or resized by others. ErrorKind::busy when a
// writer has it. Where the file system has no such locks, a warning in the log and success.
Result<void> lock_image_for_reading(const base::Fd& fd, const std::string& path);
// Says that the image is written and resized, and must not be by others, nor be read while it
// changes. ErrorKind::busy when a reader or a writer has it. The rest as above.
Result<void> lock_image_for_writing(const base::Fd& fd, const std::string& path);
// From the lock of a writer to that of a reader, without a moment between: others may read now.
void keep_lock_of_reader(int fd);

}  // namespace blockdev
