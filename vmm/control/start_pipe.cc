#include "vmm/control/start_pipe.h"

#include <fcntl.h>
#include <unistd.h>

#include "vmm/control/launcher.h"

namespace control {
namespace {

void send_and_close(std::optional<base::Fd>& pipe, std::string_view text) {
  if (!pipe) return;
  // A parent that was killed meanwhile hears nothing; the VM goes on.
  [[maybe_unused]] const Result<void> sent =
      base::write_all(*pipe, {reinterpret_cast<const u8*>(text.data()), text.size()});
  pipe.reset();
}

}  // namespace

Result<StartPipe> StartPipe::create() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno_error("create a pipe");
  return StartPipe{base::Fd(ends[0]), base::Fd(ends[1])};
}

void report_ready(std::optional<base::Fd>& pipe) {
  send_and_close(pipe, std::string_view("\0", 1));
}

void report_failure(std::optional<base::Fd>& pipe, const Error& error) {
  std::string text = fmt::format("error: {}\n", error.message());
  if (!error.hint().empty()) text += fmt::format("hint: {}\n", error.hint());
  send_and_close(pipe, text);
}

int Launcher::bench(const std::vector<std::string>&) { return 1; }

int Launcher::soak(const std::vector<std::string>&) { return 1; }

int Launcher::image(const std::vector<std::string>&) { return 1; }

StartOutcome wait_for_start(const base::Fd& read_end, std::string& message) {
  constexpr std::size_t kMaximumMessageBytes = 64 * 1024;
  char buffer[4096];
  while (message.size() < kMaximumMessageBytes) {
    const ssize_t count = ::read(read_end.get(), buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    message.append(buffer, static_cast<std::size_t>(count));
    if (message.front() == '\0') return StartOutcome::running;
  }
  return message.empty() ? StartOutcome::vanished : StartOutcome::refused;
}

}  // namespace control
