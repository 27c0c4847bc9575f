#include "vmm/control/console_hub.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <utility>
#include <vector>

#include "vmm/base/fd.h"
#include "vmm/base/log.h"
#include "vmm/base/mutex.h"
#include "vmm/control/console_reader.h"
#include "vmm/control/terminal.h"
#include "vmm/control/unix_listener.h"

namespace control {
namespace {

// Enough for people and for a few programs; each may hold a backlog.
constexpr std::size_t kMaximumClients = 16;
constexpr u64 kInputRetryMs = 20;
constexpr u64 kFinishMs = 1000;

}  // namespace

struct ConsoleHub::Impl : std::enable_shared_from_this<ConsoleHub::Impl> {
  Impl(Loop& l, const ConsoleOptions& o, base::EventFd w)
      : loop(l), options(o), wake(std::move(w)) {}

  Loop& loop;
  const ConsoleOptions options;

  // From the vCPU threads. The lock is held for a copy or a swap and never across a call.
  base::Mutex mutex;
  std::vector<u8> ring GUARDED_BY(mutex);
  u64 ring_dropped GUARDED_BY(mutex) = 0;
  // Lines for the log alone, by the place in `ring` in front of which they belong.
  std::vector<std::pair<std::size_t, std::string>> marks GUARDED_BY(mutex);
  bool is_wake_pending GUARDED_BY(mutex) = false;
  base::EventFd wake;
  std::atomic<bool> wants_input_room{false};
  std::atomic<bool> is_input_room_posted{false};

  // The loop's.
  std::vector<u8> draining;
  std::vector<std::pair<std::size_t, std::string>> draining_marks;
  base::Fd log;
  bool has_log_failed = false;
  std::shared_ptr<ConsoleReader> output;
  std::unique_ptr<RawTerminal> terminal;
  base::Fd standard_input;
  std::shared_ptr<UnixListener> listener;
  std::vector<std::shared_ptr<ConsoleReader>> clients;
  u64 dropped_of_gone_clients = 0;
  u64 ring_dropped_told = 0;
  std::function<u64(std::span<const u8>)> input;
  std::function<void()> leave;
  bool is_escape_pending = false;
  // Read from somebody, not taken by the device yet.
  std::array<u8, 4096> waiting{};
  std::size_t waiting_bytes = 0;
  std::size_t waiting_sent = 0;
  int waiting_source = -1;
  bool is_retry_scheduled = false;
  // Who was told to wait while the device is full.
  std::vector<int> held_back;

  Result<void> open();
  Result<void> open_stdio();
  void drain();
  void write_log(std::span<const u8> bytes);
  void add_client(base::Fd client);
  void watch_input(int fd);
  bool input_ready(int fd);
  void end_of_input(int fd);
  bool is_source(int fd) const;
  std::size_t without_escapes(std::span<u8> bytes);
  void deliver_input();
  void drop_unread(int fd);
};

// --- from the guest --------------------------------------------------------------------------

void ConsoleHub::write(std::span<const u8> bytes) {
  Impl& hub = *impl_;
  bool must_wake = false;
  {
    base::MutexLock lock(hub.mutex);
    const u64 room = hub.options.backlog_bytes - hub.ring.size();
    const u64 taken = std::min<u64>(room, bytes.size());
    hub.ring.insert(hub.ring.end(), bytes.begin(), bytes.begin() + static_cast<i64>(taken));
    hub.ring_dropped += bytes.size() - taken;
    must_wake = !std::exchange(hub.is_wake_pending, true);
  }
  if (must_wake) hub.wake.signal();
}

void ConsoleHub::Impl::drain() {
  {
    base::MutexLock lock(mutex);
    is_wake_pending = false;
    std::swap(ring, draining);
    std::swap(marks, draining_marks);
    // The gap is at the end of what is in the ring: that fills from the front.
    if (const u64 lost = ring_dropped - std::exchange(ring_dropped_told, ring_dropped); lost != 0) {
      const std::string line = fmt::format("\r\n[{} bytes were not read in time]\r\n", lost);
      draining.insert(draining.end(), line.begin(), line.end());
    }
  }
  // Before the log: a person or a pipe waits for these.
  if (output) output->send(draining);
  for (const auto& client : clients) client->send(draining);
  std::size_t logged = 0;
  for (const auto& [place, line] : draining_marks) {
    write_log(std::span(draining).subspan(logged, place - logged));
    write_log({reinterpret_cast<const u8*>(line.data()), line.size()});
    logged = place;
  }
  write_log(std::span(draining).subspan(logged));
  draining.clear();
  draining_marks.clear();
  std::erase_if(clients, [this](const auto& client) {
    if (client->is_closed()) dropped_of_gone_clients += client->dropped_bytes();
    return client->is_closed();
  });
}

void ConsoleHub::Impl::write_log(std::span<const u8> bytes) {
  if (!log || bytes.empty()) return;
  const Result<void> written = base::write_all(log, bytes);
  // A full disk costs the log some lines and the VM nothing. Said once.
  if (!written && !std::exchange(has_log_failed, true)) {
    base::log(base::LogLevel::warning, "console log: {}", written.error().message());
  }
}

void ConsoleHub::mark_log(std::string_view line) {
  {
    base::MutexLock lock(impl_->mutex);
    impl_->marks.emplace_back(impl_->ring.size(), fmt::format("\r\n{}\r\n", line));
  }
  // Whoever marks a revert is being waited for. Posted and not signalled: on the loop's own thread
  // that costs no system call.
  impl_->loop.post([weak = impl_->weak_from_this()] {
    if (const auto self = weak.lock()) self->drain();
  });
}

// --- to the guest ----------------------------------------------------------------------------

void ConsoleHub::Impl::add_client(base::Fd client) {
  if (clients.size() >= kMaximumClients) return;
  clients.push_back(
      std::make_shared<ConsoleReader>(loop, std::move(client), options.backlog_bytes));
  watch_input(clients.back()->fd());
}

void ConsoleHub::Impl::watch_input(int fd) {
  loop.watch_readable(fd, [this, fd] { return input_ready(fd); });
}

bool ConsoleHub::Impl::input_ready(int fd) {
  if (waiting_sent < waiting_bytes) {
    held_back.push_back(fd);
    return false;
  }
  const ssize_t count = ::read(fd, waiting.data(), waiting.size());
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (count <= 0) {
    end_of_input(fd);
    return false;
  }
  std::span<u8> bytes(waiting.data(), static_cast<std::size_t>(count));
  waiting_sent = 0;
  waiting_source = fd;
  waiting_bytes = fd == standard_input.get() && terminal ? without_escapes(bytes) : bytes.size();
  deliver_input();
  return true;
}

// Standard input that ends is no more than that. A client that ends is gone.
void ConsoleHub::Impl::end_of_input(int fd) {
  for (const auto& client : clients) {
    if (client->fd() != fd) continue;
    client->close();
    drain();
    return;
  }
}

// A client that was held back may have gone since.
bool ConsoleHub::Impl::is_source(int fd) const {
  return fd == standard_input.get() ||
         std::any_of(clients.begin(), clients.end(), [&](const auto& c) { return c->fd() == fd; });
}

// Takes ^] out; the second one in a row leaves.
std::size_t ConsoleHub::Impl::without_escapes(std::span<u8> bytes) {
  std::size_t kept = 0;
  for (const u8 byte : bytes) {
    if (byte != kEscapeByte) {
      is_escape_pending = false;
      bytes[kept++] = byte;
      continue;
    }
    if (std::exchange(is_escape_pending, !is_escape_pending) && leave) {
      loop.post(leave);
    } else {
      base::log(base::LogLevel::info, "\r\n[^] again ends the VM; any other key goes on]\r");
    }
  }
  return kept;
}

void ConsoleHub::Impl::deliver_input() {
  if (!input) waiting_sent = waiting_bytes;  // nobody to give it to
  if (waiting_sent < waiting_bytes) {
    // Set before the device says no: it may have room again before we look.
    wants_input_room.store(true);
    waiting_sent += input({waiting.data() + waiting_sent, waiting_bytes - waiting_sent});
  }
  if (waiting_sent >= waiting_bytes) {
    wants_input_room.store(false);
    for (const int fd : std::exchange(held_back, {})) {
      if (is_source(fd)) watch_input(fd);
    }
    return;
  }
  if (std::exchange(is_retry_scheduled, true)) return;
  loop.call_after_ms(kInputRetryMs, [weak = weak_from_this()] {
    const auto self = weak.lock();
    if (!self) return;
    self->is_retry_scheduled = false;
    self->deliver_input();
  });
}

// What a client has sent and nobody has read is older than the revert as well. A bounded number of
// pieces: one that never stops sending shall not stop us.
void ConsoleHub::Impl::drop_unread(int fd) {
  constexpr int kMaximumPieces = 256;
  std::array<u8, 4096> piece;
  for (int i = 0; i < kMaximumPieces; ++i) {
    const ssize_t count = ::recv(fd, piece.data(), piece.size(), MSG_DONTWAIT);
    if (count < static_cast<ssize_t>(piece.size())) return;  // its end is seen by who watches it
  }
}

void ConsoleHub::drop_waiting_input() {
  Impl& hub = *impl_;
  for (const auto& client : hub.clients) hub.drop_unread(client->fd());
  if (hub.terminal) ::tcflush(hub.standard_input.get(), TCIFLUSH);
  if (hub.waiting_source == hub.standard_input.get() && !hub.terminal) return;
  hub.waiting_sent = hub.waiting_bytes;
  hub.deliver_input();
}

void ConsoleHub::input_room() {
  if (!impl_->wants_input_room.load() || impl_->is_input_room_posted.exchange(true)) return;
  impl_->loop.post([weak = impl_->weak_from_this()] {
    const auto self = weak.lock();
    if (!self) return;
    self->is_input_room_posted.store(false);
    self->deliver_input();
  });
}

void ConsoleHub::set_input(std::function<u64(std::span<const u8>)> input) {
  impl_->input = std::move(input);
}

void ConsoleHub::set_leave(std::function<void()> leave) { impl_->leave = std::move(leave); }

// --- begin and end ---------------------------------------------------------------------------

Result<void> ConsoleHub::Impl::open() {
  if (!options.log_file.empty()) {
    log = TRY(base::open_file(options.log_file, O_WRONLY | O_CREAT | O_APPEND));
  }
  if (!options.socket_path.empty()) {
    listener = TRY(UnixListener::create(
        loop, options.socket_path, [this](base::Fd client) { add_client(std::move(client)); }));
  }
  if (options.target == ConsoleTarget::stdio) TRY(open_stdio());
  loop.watch_readable(wake.fd().get(), [this] {
    wake.take();
    drain();
    return true;
  });
  return {};
}

Result<void> ConsoleHub::Impl::open_stdio() {
  // A program started with a closed stdin or stdout runs without it.
  Result<base::Fd> out = own_standard_stream(STDOUT_FILENO, O_WRONLY);
  if (out) {
    output = std::make_shared<ConsoleReader>(loop, std::move(*out), options.stdio_backlog_bytes);
  }
  terminal = RawTerminal::begin();
  if (!terminal && ::isatty(STDIN_FILENO) == 1) return {};  // another job's terminal
  Result<base::Fd> in = own_standard_stream(STDIN_FILENO, O_RDONLY);
  if (!in) return {};
  standard_input = std::move(*in);
  watch_input(standard_input.get());
  return {};
}

ConsoleHub::ConsoleHub(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<ConsoleHub>> ConsoleHub::create(Loop& loop, const ConsoleOptions& options) {
  // A reader that goes away is an error of one write, not the end of the VM.
  ::signal(SIGPIPE, SIG_IGN);
  auto impl = std::make_shared<Impl>(loop, options, TRY(base::EventFd::create()));
  TRY(impl->open());
  return std::unique_ptr<ConsoleHub>(new ConsoleHub(std::move(impl)));
}

Result<void> ConsoleHub::finish() {
  impl_->drain();
  if (impl_->output) impl_->output->finish(kFinishMs);
  for (const auto& client : impl_->clients) client->finish(0);
  return impl_->output ? impl_->output->outcome() : Result<void>();
}

ConsoleHub::~ConsoleHub() {
  (void)finish();
  Impl& hub = *impl_;
  hub.loop.unwatch(hub.wake.fd().get());
  if (hub.standard_input) hub.loop.unwatch(hub.standard_input.get());
  hub.listener.reset();
  for (const auto& client : hub.clients) client->close();
}

u64 ConsoleHub::dropped_bytes() const {
  u64 dropped = impl_->dropped_of_gone_clients;
  if (impl_->output) dropped += impl_->output->dropped_bytes();
  for (const auto& client : impl_->clients) dropped += client->dropped_bytes();
  base::MutexLock lock(impl_->mutex);
  return dropped + impl_->ring_dropped;
}

}  // namespace control
