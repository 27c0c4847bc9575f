#include "vmm/bench/child.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string_view>

namespace bench {
namespace {

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> result;
  for (std::string& word : words) result.push_back(word.data());
  result.push_back(nullptr);
  return result;
}

std::vector<std::string> environment_with(const std::string& home) {
  constexpr std::string_view kName = "QUICKSAVE_HOME=";
  std::vector<std::string> variables = {std::string(kName) + home};
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!std::string_view(*variable).starts_with(kName)) variables.emplace_back(*variable);
  }
  return variables;
}

}  // namespace

Result<Child> Child::start(std::vector<std::string> words, const std::string& home,
                           ChildOutput output, const std::string& errors_path) {
  int ends[2] = {-1, -1};
  if (output == ChildOutput::pipe && ::pipe2(ends, O_CLOEXEC) != 0) {
    return errno_error("make a pipe");
  }
  base::Fd read_end(ends[0]);
  const base::Fd write_end(ends[1]);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  if (write_end) {
    ::posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDOUT_FILENO);
  } else {
    ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  }
  ::posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, errors_path.c_str(),
                                     O_WRONLY | O_CREAT | O_TRUNC, 0600);
  std::vector<std::string> variables = environment_with(home);
  const std::vector<char*> arguments = pointers(words);
  const std::vector<char*> environment = pointers(variables);
  const Clock::time_point started = Clock::now();
  pid_t pid = -1;
  const int failed =
      ::posix_spawnp(&pid, arguments[0], &actions, nullptr, arguments.data(), environment.data());
  ::posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) return Error::from_errno(failed, fmt::format("start {}", words[0]));
  return Child(pid, std::move(read_end), started, errors_path);
}

Child::Child(Child&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      output_(std::move(other.output_)),
      started_(other.started_),
      errors_path_(std::move(other.errors_path_)) {}

Child::~Child() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  wait();
}

int Child::wait() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) continue;
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string Child::errors() const {
  const Result<std::string> text = base::read_whole_file(errors_path_, base::kMiB);
  return text ? *text : "";
}

Result<char> read_byte(const base::Fd& fd) {
  pollfd wanted{.fd = fd.get(), .events = POLLIN, .revents = 0};
  int ready = 0;
  while ((ready = ::poll(&wanted, 1, kPatienceMs)) < 0 && errno == EINTR) continue;
  if (ready == 0) return make_error(ErrorKind::failed, "the guest says nothing");
  char byte = 0;
  if (::read(fd.get(), &byte, 1) != 1) {
    return make_error(ErrorKind::failed, "the VM's process ended before its guest spoke");
  }
  return byte;
}

}  // namespace bench
