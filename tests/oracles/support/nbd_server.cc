#include "tests/oracles/support/nbd_server.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <ctime>

#include <fmt/format.h>

#include "vmm/base/fd.h"

namespace blockdev::test {
namespace {

bool has(const char* program) {
  return std::system(fmt::format("command -v {} >/dev/null 2>&1", program).c_str()) == 0;
}

[[noreturn]] void become_nbdkit(std::vector<std::string> words, const std::string& log) {
  const int fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  ::dup2(fd, STDERR_FILENO);
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  ::execvp(arguments[0], arguments.data());
  ::_exit(127);
}

}  // namespace

std::optional<std::string> why_oracles_cannot_run() {
  if (!has_qemu_tools()) return "qemu-img and qemu-io are not installed";
  for (const char* program : {"nbdkit", "nbdinfo", "nbdcopy", "fio"}) {
    if (!has(program)) return "nbdkit, libnbd-bin or fio is not installed";
  }
  return std::nullopt;
}

NbdServer::NbdServer(const TempDir& dir, const std::vector<std::string>& parameters) {
  static int count = 0;
  socket_ = dir.path(fmt::format("nbd-{}.sock", count));
  const std::string log = dir.path(fmt::format("nbd-{}.log", count++));
  std::vector<std::string> words = {"nbdkit", "--exit-with-parent", "-U", socket_,
                                    NBDKIT_PLUGIN_PATH};
  words.insert(words.end(), parameters.begin(), parameters.end());
  pid_ = ::fork();
  if (pid_ == 0) become_nbdkit(std::move(words), log);
  // The socket is there before the disk is open; who connects then waits.
  for (int tries = 0; tries < 1000 && ::access(socket_.c_str(), F_OK) != 0; ++tries) {
    if (::waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = -1;
      ADD_FAILURE() << "nbdkit did not start: " << base::read_whole_file(log, 1 << 20).value_or("");
      return;
    }
    const timespec pause{0, 10'000'000};
    ::nanosleep(&pause, nullptr);
  }
}

NbdServer::~NbdServer() { stop(); }

void NbdServer::stop() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGTERM);
  int status = -1;
  ::waitpid(pid_, &status, 0);
  pid_ = -1;
  EXPECT_EQ(status, 0) << "nbdkit ended badly";
}

void qemu_io(const std::string& target, const std::string& format,
             const std::vector<std::string>& commands) {
  std::string line = "qemu-io -f " + format;
  for (const std::string& command : commands) line += " -c '" + command + "'";
  const CommandResult result = run_command(line + " " + target);
  EXPECT_EQ(result.status, 0) << line << "\n" << result.output;
  // Its status is 0 also when a pattern did not match.
  for (const char* bad : {"verification failed", "failed:", "Pattern"}) {
    EXPECT_EQ(result.output.find(bad), std::string::npos) << line << "\n" << result.output;
  }
}

}  // namespace blockdev::test
