#include "vmm/image/nbdkit.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>

#include "vmm/control/output.h"

namespace image {
namespace {

constexpr const char* kPluginName = "nbdkit-quicksave-plugin.so";
// sd_listen_fds(3): the first descriptor that is handed on is 3.
constexpr int kListenerFd = 3;
constexpr int kReadyFd = 4;
constexpr int kPatienceMs = 5000;
// Beyond both, so that neither is overwritten before it is moved there.
constexpr int kFirstFreeFd = 10;

// In the child, between fork and exec: no other thread was ever there.
[[noreturn]] void become_nbdkit(std::vector<std::string>& words, const base::Fd& listener,
                                const base::Fd& ready, const sigset_t& signals) {
  const int from = ::fcntl(listener.get(), F_DUPFD_CLOEXEC, kFirstFreeFd);
  const int ready_from = ::fcntl(ready.get(), F_DUPFD_CLOEXEC, kFirstFreeFd);
  if (::dup2(from, kListenerFd) < 0 || ::dup2(ready_from, kReadyFd) < 0) ::_exit(1);
  ::setenv("LISTEN_FDS", "1", 1);
  ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
  ::sigprocmask(SIG_SETMASK, &signals, nullptr);
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  ::execv(arguments[0], arguments.data());
  ::_exit(1);
}

struct Pipe {
  base::Fd read_end;
  base::Fd write_end;
};
Result<Pipe> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno_error("create a pipe");
  return Pipe{base::Fd(ends[0]), base::Fd(ends[1])};
}

std::string describe_status(int status) {
  return WIFSIGNALED(status) ? fmt::format("killed by signal {}", WTERMSIG(status))
                             : fmt::format("status {}", WEXITSTATUS(status));
}

}  // namespace

Result<std::string> find_nbdkit() {
  const char* const variable = std::getenv("PATH");
  std::string_view rest = variable != nullptr ? variable : "/usr/bin:/bin";
  while (!rest.empty()) {
    const std::string_view directory = rest.substr(0, rest.find(':'));
    rest.remove_prefix(std::min(rest.size(), directory.size() + 1));
    std::string path = fmt::format("{}/nbdkit", directory.empty() ? "." : directory);
    if (::access(path.c_str(), X_OK) == 0) return path;
  }
  return make_error(ErrorKind::not_found, "nbdkit, which serves disks, is not installed")
      .with_hint("apt-get install nbdkit");
}

Result<std::string> find_nbdkit_plugin() {
  const char* const named = std::getenv("QUICKSAVE_NBDKIT_PLUGIN");
  std::string path = named != nullptr ? named : "";
  if (path.empty()) {
    std::array<char, 4096> program{};
    const ssize_t size = ::readlink("/proc/self/exe", program.data(), program.size());
    if (size < 0) return errno_error("read /proc/self/exe");
    path.assign(program.data(), static_cast<std::size_t>(size));
    path = path.substr(0, path.rfind('/') + 1) + kPluginName;
  }
  if (path.find('/') == std::string::npos) path = "./" + path;  // else nbdkit looks elsewhere
  if (::access(path.c_str(), R_OK) == 0) return path;
  return errno_error("nbdkit plugin \"{}\"", path)
      .with_hint(
          "it is built where nbdkit-plugin-dev is installed, and belongs beside this program or "
          "where $QUICKSAVE_NBDKIT_PLUGIN says");
}

Result<NbdkitProcess> NbdkitProcess::start(std::vector<std::string> words,
                                           const base::Fd& listener) {
  words.insert(words.begin() + 1, "--exit-with-parent");
  words.push_back(fmt::format("ready-fd={}", kReadyFd));
  NbdkitProcess process;
  Pipe pipe = TRY(make_pipe());
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) ::sigaddset(&signals, signal);
  ::sigprocmask(SIG_BLOCK, &signals, &process.signals_before_);
  process.signals_ = base::Fd(::signalfd(-1, &signals, SFD_CLOEXEC));
  if (!process.signals_) return errno_error("create a signalfd");
  process.pid_ = ::fork();
  if (process.pid_ < 0) return errno_error("start nbdkit");
  if (process.pid_ == 0) become_nbdkit(words, listener, pipe.write_end, process.signals_before_);
  process.ready_ = std::move(pipe.read_end);
  return process;
}

NbdkitProcess::NbdkitProcess(NbdkitProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      status_(other.status_),
      was_asked_to_end_(other.was_asked_to_end_),
      signals_before_(other.signals_before_),
      signals_(std::move(other.signals_)),
      ready_(std::move(other.ready_)) {}

NbdkitProcess::~NbdkitProcess() {
  if (pid_ > 0) {
    ::kill(pid_, SIGTERM);
    ::waitpid(pid_, nullptr, 0);
  }
  if (signals_) ::sigprocmask(SIG_SETMASK, &signals_before_, nullptr);
}

Result<void> NbdkitProcess::wait_until_ready() {
  std::string text;
  while (true) {
    std::array<pollfd, 2> fds = {pollfd{ready_.get(), POLLIN, 0},
                                 pollfd{signals_.get(), POLLIN, 0}};
    if (::poll(fds.data(), fds.size(), -1) < 0) {
      if (errno == EINTR) continue;
      return errno_error("wait for nbdkit");
    }
    // nbdkit's end closes the pipe, too.
    if (fds[0].revents == 0) {
      take_signal();
      continue;
    }
    std::array<char, 1024> piece{};
    const ssize_t count = ::read(ready_.get(), piece.data(), piece.size());
    if (count <= 0) break;
    text.append(piece.data(), static_cast<std::size_t>(count));
  }
  ready_.reset();
  if (text == "ready\n") return {};
  while (pid_ > 0) take_signal();
  if (text.empty()) {
    return make_error(ErrorKind::failed, "nbdkit ended before the disk was open ({}); see above",
                      describe_status(status_));
  }
  const std::size_t line = std::min(text.find('\n'), text.size());
  Error error = make_error(ErrorKind::failed, "{}", text.substr(0, line));
  if (line + 1 >= text.size()) return error;
  return std::move(error).with_hint(text.substr(line + 1));
}

// nbdkit itself waits for its clients, one that is idle too, for as long as they like.
Result<void> NbdkitProcess::wait_for_end() {
  while (pid_ > 0) {
    pollfd signal{signals_.get(), POLLIN, 0};
    const int ready = ::poll(&signal, 1, was_asked_to_end_ ? kPatienceMs : -1);
    if (ready < 0 && errno != EINTR) return errno_error("wait for nbdkit");
    if (ready > 0) take_signal();
    if (ready != 0) continue;
    control::warn(
        fmt::format("a client is still connected after {} s: it is cut off, and what it wrote "
                    "and did not flush may be lost",
                    kPatienceMs / 1000));
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, &status_, 0);
    pid_ = -1;
    return {};
  }
  if (was_asked_to_end_ && WIFEXITED(status_) && WEXITSTATUS(status_) == 0) return {};
  return make_error(ErrorKind::failed, "nbdkit ended ({})", describe_status(status_));
}

void NbdkitProcess::take_signal() {
  signalfd_siginfo info{};
  if (::read(signals_.get(), &info, sizeof info) != sizeof info) return;
  if (info.ssi_signo != SIGCHLD) {
    was_asked_to_end_ = true;
    ::kill(pid_, SIGTERM);
  } else if (::waitpid(pid_, &status_, WNOHANG) == pid_) {
    pid_ = -1;
  }
}

}  // namespace image
