#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>

#include "vmm/control/live_vm.h"
#include "vmm/control/terminal.h"
#include "vmm/control/unix_socket.h"
#include "vmm/control/verbs.h"

namespace control {
namespace {

constexpr std::size_t kPieceBytes = 64 * 1024;

// Shovels both ways until the VM closes its side or ^] is typed. True: the user left.
Result<bool> shovel(const base::Fd& socket, bool is_terminal) {
  std::vector<u8> buffer(kPieceBytes);
  pollfd sources[] = {{socket.get(), POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
  for (;;) {
    if (::poll(sources, 2, -1) < 0 && errno != EINTR) return errno_error("poll");
    if (sources[0].revents != 0) {
      const ssize_t count = ::read(socket.get(), buffer.data(), buffer.size());
      if (count == 0 || (count < 0 && errno != EINTR)) return false;
      if (count > 0) {
        put({reinterpret_cast<const char*>(buffer.data()), static_cast<std::size_t>(count)});
      }
    }
    if (sources[1].fd < 0 || sources[1].revents == 0) continue;
    const ssize_t count = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (count <= 0) {
      sources[1].fd = -1;  // input that ends is no more than that
      continue;
    }
    std::span<const u8> bytes(buffer.data(), static_cast<std::size_t>(count));
    const auto escape =
        is_terminal ? std::find(bytes.begin(), bytes.end(), kEscapeByte) : bytes.end();
    const bool leaves = escape != bytes.end();
    bytes = bytes.first(static_cast<std::size_t>(escape - bytes.begin()));
    if (!base::write_all(socket, bytes) && !leaves) return false;
    if (leaves) return true;
  }
}

void say(std::string_view text) {
  [[maybe_unused]] const ssize_t count = ::write(STDERR_FILENO, text.data(), text.size());
}

// Prints what stands in the file from where it stands on.
Result<void> print_rest(const base::Fd& file) {
  std::vector<u8> buffer(kPieceBytes);
  for (;;) {
    const ssize_t count = ::read(file.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno_error("read the log");
    if (count == 0) return {};
    put({reinterpret_cast<const char*>(buffer.data()), static_cast<std::size_t>(count)});
  }
}

}  // namespace

Result<int> console(const std::string& vm) {
  const Home home = TRY(Home::from_environment());
  const VmDirectory directory = TRY(find_vm_directory(home, vm));
  TRY(ApiClient::connect(directory));  // for its messages: whether the VM runs at all
  const base::Fd socket = TRY(connect_unix(directory.console_socket()));
  const std::unique_ptr<RawTerminal> terminal = RawTerminal::begin();
  if (terminal) say(fmt::format("[attached to {}, ^] leaves]\r\n", vm));
  const bool left = TRY(shovel(socket, terminal != nullptr));
  if (terminal) say(left ? "\r\n[detached]\r\n" : fmt::format("\r\n[{} has ended]\r\n", vm));
  return kExitDone;
}

Result<int> logs(const std::string& vm, Follow follow, LogKind kind) {
  constexpr u64 kLookAgainMs = 100;
  const Home home = TRY(Home::from_environment());
  const VmDirectory directory = TRY(find_vm_directory(home, vm));
  const std::string path = kind == LogKind::console ? directory.console_log() : directory.vmm_log();
  Result<base::Fd> file = base::open_file(path, O_RDONLY);
  if (!file && file.error().kind() == ErrorKind::not_found) return kExitDone;  // nothing said yet
  if (!file) return file.error();
  TRY(print_rest(*file));
  while (follow == Follow::yes) {
    const bool ended = TRY(wait_for_end(directory, kLookAgainMs));
    TRY(print_rest(*file));
    if (ended) break;
  }
  return kExitDone;
}

}  // namespace control
