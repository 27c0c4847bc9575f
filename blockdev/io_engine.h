// IoEngine: moves bytes between files and buffers, for one thread.
//
// An operation is whole when it is reported: short transfers are continued, EINTR tried again, and
// a read that reaches the end of the file finds zeros there (qcow2 and raw images both read so:
// reference/qcow2.md 1.3, "bytes past EOF of the file read as 0").
//
// Invariant: the engine keeps its own copy of the iovec list; the memory it points to and the file
// stay the caller's to keep alive.
// Thread: one at a time; moving to another thread while nothing is in flight is allowed.

#pragma once

#include <sys/uio.h>

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace blockdev {

enum class IoKind : u8 {
  read,
  write,
  sync,      // fdatasync
  punch,     // gives [offset, offset + length) back: it reads as zeros, the file keeps its size
  truncate,  // makes the file `offset` bytes long
};

struct IoOperation {
  IoKind kind = IoKind::read;
  int fd = -1;
  u64 offset = 0;
  std::span<const iovec> buffers = {};  // read, write
  u64 tag = 0;                          // comes back in the completion
  u64 length = 0;                       // punch
};

struct IoCompletion {
  u64 tag = 0;
  int error_number = 0;  // 0: the whole transfer is done
};

class IoEngine {
 public:
  virtual ~IoEngine() = default;

  // Does the operation on this thread if that is the fastest way and will not wait for a device,
  // and returns its outcome; nothing: submit() it. An engine that records, delays or fails
  // operations leaves this as it is and so sees all of them in submit().
  virtual std::optional<int> try_now(const IoOperation&) { return std::nullopt; }
  // Takes any number; beyond its depth they wait in the engine.
  virtual void submit(const IoOperation& operation) = 0;
  // Hands what was submitted to the kernel. Call once after a batch of submit().
  virtual void kick() = 0;
  // Appends what has completed; never blocks.
  virtual void reap(std::vector<IoCompletion>& completions) = 0;
  // Blocks until reap() has something. REQUIRES: in_flight_count() > 0.
  virtual void wait() = 0;
  // Readable while reap() has something.
  virtual int completion_fd() const = 0;
  virtual u32 in_flight_count() const = 0;
};

// The io_uring engine, or the one with plain system calls where io_uring is not available (an old
// kernel, a container's seccomp filter): said in the log.
Result<std::unique_ptr<IoEngine>> make_io_engine();

// Where a disk gets its engines from: one for each queue and for each thread that writes metadata.
using EngineMaker = std::function<Result<std::unique_ptr<IoEngine>>()>;

}  // namespace blockdev
