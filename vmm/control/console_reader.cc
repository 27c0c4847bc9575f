#include "vmm/control/console_reader.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "vmm/control/api_session.h"

namespace control {

ConsoleReader::~ConsoleReader() { close(); }

void ConsoleReader::close() {
  if (!fd_) return;
  loop_.unwatch(fd_.get());
  fd_.reset();
}

void ConsoleReader::write_failed() {
  if (errno != EPIPE && errno != ECONNRESET) outcome_ = errno_error("write the guest's console");
  close();
}

void ConsoleReader::send(std::span<const u8> bytes) {
  if (!fd_) return;
  if (backlog_.empty()) {
    const ssize_t count = ::write(fd_.get(), bytes.data(), bytes.size());
    if (count < 0 && errno != EAGAIN && errno != EINTR) return write_failed();
    if (count > 0) bytes = bytes.subspan(static_cast<std::size_t>(count));
    if (bytes.empty()) return;
  }
  backlog_.append(bytes);
  send_backlog();
}

void ConsoleReader::send_backlog() {
  while (fd_ && !backlog_.empty()) {
    const std::span<const u8> bytes = backlog_.front();
    const ssize_t count = ::write(fd_.get(), bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) {
      if (std::exchange(is_waiting_, true)) return;
      loop_.watch_writable(fd_.get(), [weak = weak_from_this()] {
        const std::shared_ptr<ConsoleReader> self = weak.lock();
        if (!self) return false;
        self->is_waiting_ = false;
        self->send_backlog();  // waits anew if need be
        return false;
      });
      return;
    }
    if (count < 0) return write_failed();
    backlog_.remove_front(static_cast<u64>(count));
    if (backlog_.empty()) tell_what_was_missed();
  }
}

void ConsoleReader::tell_what_was_missed() {
  const u64 missed = backlog_.dropped_bytes() - told_bytes_;
  if (missed == 0) return;
  told_bytes_ = backlog_.dropped_bytes();
  const std::string line =
      fmt::format("\r\n[{} bytes of output were not read in time]\r\n", missed);
  backlog_.append({reinterpret_cast<const u8*>(line.data()), line.size()});
}

void ConsoleReader::finish(u64 wait_ms) {
  const u64 end_ms = monotonic_ms() + wait_ms;
  send_backlog();
  while (fd_ && !backlog_.empty()) {
    const u64 now = monotonic_ms();
    pollfd ready{fd_.get(), POLLOUT, 0};
    if (now >= end_ms || ::poll(&ready, 1, static_cast<int>(end_ms - now)) <= 0) return;
    send_backlog();
  }
}

Result<base::Fd> own_standard_stream(int standard_fd, int open_flags) {
  struct stat status {};
  if (::fstat(standard_fd, &status) != 0) return errno_error("standard stream {}", standard_fd);
  if (S_ISFIFO(status.st_mode) || S_ISCHR(status.st_mode)) {
    base::Fd fresh(::open(fmt::format("/proc/self/fd/{}", standard_fd).c_str(),
                          open_flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    if (fresh) return fresh;
  }
  base::Fd copy(::fcntl(standard_fd, F_DUPFD_CLOEXEC, 3));
  if (!copy) return errno_error("duplicate standard stream {}", standard_fd);
  if (!S_ISREG(status.st_mode)) {
    const int flags = ::fcntl(copy.get(), F_GETFL);
    if (flags < 0 || ::fcntl(copy.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
      return errno_error("make standard stream {} non-blocking", standard_fd);
    }
  }
  return copy;
}

}  // namespace control
