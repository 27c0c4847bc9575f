// ConsoleReader: one that looks at the console: standard output, or a client of the socket.
//
// Thread: the loop's.

#pragma once

#include <memory>
#include <span>

#include "vmm/base/fd.h"
#include "vmm/control/byte_backlog.h"
#include "vmm/control/loop.h"

namespace control {

class ConsoleReader final : public std::enable_shared_from_this<ConsoleReader> {
 public:
  // `fd` is non-blocking, or a regular file.
  ConsoleReader(Loop& loop, base::Fd fd, u64 backlog_bytes)
      : loop_(loop), fd_(std::move(fd)), backlog_(backlog_bytes) {}
  ~ConsoleReader();

  // Writes at once what the descriptor takes; the rest follows when it takes more.
  void send(std::span<const u8> bytes);
  // Writes what it takes within the time. For the end of the VM.
  void finish(u64 wait_ms);
  void close();

  bool is_closed() const { return !fd_; }
  // Why nothing more can be written. A reader that has gone, as `head` does, is no failure.
  const Result<void>& outcome() const { return outcome_; }
  int fd() const { return fd_.get(); }
  u64 dropped_bytes() const { return backlog_.dropped_bytes(); }

 private:
  void write_failed();
  void send_backlog();
  void tell_what_was_missed();

  Loop& loop_;
  base::Fd fd_;
  ByteBacklog backlog_;
  u64 told_bytes_ = 0;  // of the dropped ones
  bool is_waiting_ = false;
  Result<void> outcome_;
};

// A descriptor of our own for standard input or output, so that making it non-blocking does not
// change the shell's: a terminal or pipe is opened anew, anything else duplicated.
Result<base::Fd> own_standard_stream(int standard_fd, int open_flags);

}  // namespace control
