#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <memory>

#include "vmm/base/fd.h"
#include "vmm/base/log.h"
#include "vmm/control/api_session.h"
#include "vmm/control/launcher.h"

namespace control {
namespace {

// timeout(1) and a terminal that closes send two at once, to the process and to its group.
constexpr u64 kOneRequestMs = 1000;

// What the signal handler needs: globals, because a handler gets nothing else.
std::atomic<int> g_wake_fd{-1};
std::atomic<int> g_signal{0};
std::atomic<u64> g_first_signal_ms{0};

// A first signal asks; a second one, from somebody who has waited, does not wait for the answer.
void note_signal(int signal) {
  const int saved_errno = errno;
  const u64 now_ms = monotonic_ms();
  u64 first_ms = 0;
  if (!g_first_signal_ms.compare_exchange_strong(first_ms, now_ms) &&
      now_ms - first_ms >= kOneRequestMs) {
    ::signal(signal, SIG_DFL);
    ::raise(signal);
  }
  g_signal.store(signal);
  const u64 one = 1;
  [[maybe_unused]] const ssize_t count = ::write(g_wake_fd.load(), &one, sizeof one);
  errno = saved_errno;
}

}  // namespace

void end_on_signals(Loop& loop, std::function<void(int signal)> end) {
  Result<base::EventFd> created = base::EventFd::create();
  if (!created) return base::log(base::LogLevel::warning, "{}", created.error().message());
  auto wake = std::make_shared<base::EventFd>(std::move(*created));
  g_wake_fd.store(wake->fd().get());
  loop.watch_readable(wake->fd().get(), [wake, end = std::move(end)] {
    wake->take();
    end(g_signal.load());
    return true;
  });
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    struct sigaction action {};
    // A signal that the parent had ignored (nohup) stays ignored.
    if (::sigaction(signal, nullptr, &action) != 0 || action.sa_handler == SIG_IGN) continue;
    action = {};
    action.sa_handler = note_signal;
    action.sa_flags = SA_RESTART;
    ::sigaction(signal, &action, nullptr);
  }
}

}  // namespace control
