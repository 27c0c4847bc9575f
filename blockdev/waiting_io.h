// WaitingIo: operations on an engine, and the wait for all of them.
//
// This is how metadata is read and written: nothing goes on before it is there. Whoever waits here
// holds no lock but this object's.
//
// A test's engine must let wait() or reap() end what was submitted: nobody else is asked to.
//
// Thread: one batch at a time, kept apart by a lock.

#pragma once

#include <memory>
#include <span>
#include <vector>

#include "blockdev/io_engine.h"
#include "vmm/base/mutex.h"

namespace blockdev {

class WaitingIo final {
 public:
  explicit WaitingIo(std::unique_ptr<IoEngine> engine) : engine_(std::move(engine)) {}

  // REQUIRES: not used afterwards.
  std::unique_ptr<IoEngine> take_engine() { return std::move(engine_); }

  // All of them, in no particular order. Returns 0 or the errno of one that failed; all are done
  // then too.
  int run(std::span<const IoOperation> operations);
  int run(const IoOperation& operation) { return run(std::span(&operation, 1)); }

  // One buffer.
  int read(int fd, u64 offset, std::span<u8> bytes);
  int write(int fd, u64 offset, std::span<const u8> bytes);
  int sync(int fd) { return run({.kind = IoKind::sync, .fd = fd}); }

 private:
  base::Mutex mutex_;
  std::unique_ptr<IoEngine> engine_;
  std::vector<IoCompletion> completions_ GUARDED_BY(mutex_);
};

}  // namespace blockdev
