#include "tests/native/support/vm_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>

extern char** environ;

namespace native {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kLookAgain{2};

std::string binary_path() {
  const char* chosen = std::getenv("QUICKSAVE_BINARY");
  return chosen ? chosen : QUICKSAVE_BINARY_PATH;
}

// The test's environment with QUICKSAVE_HOME and `changes` ("NAME=VALUE") in front.
std::vector<std::string> environment_for(const std::string& home,
                                         const std::vector<std::string>& changes) {
  std::vector<std::string> result = changes;
  result.push_back("QUICKSAVE_HOME=" + home);
  for (char** variable = environ; *variable; ++variable) {
    if (std::string_view(*variable).substr(0, 15) != "QUICKSAVE_HOME=") {
      result.emplace_back(*variable);
    }
  }
  return result;
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (std::string& text : strings) {
    result.push_back(text.data());
  }
  result.push_back(nullptr);
  return result;
}

// Its status, or -1 (and it is killed) when it does not end in time.
int wait_for_process(pid_t pid, std::chrono::seconds patience) {
  Clock::time_point end = Clock::now() + patience;
  int status = 0;
  while (waitpid(pid, &status, WNOHANG) == 0) {
    if (Clock::now() > end) {
      kill(pid, SIGKILL);
      waitpid(pid, &status, 0);
      return -1;
    }
    std::this_thread::sleep_for(kLookAgain);
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

std::optional<std::string> why_native_cannot_run() {
  if (access("/dev/kvm", R_OK | W_OK) != 0) {
    return "no usable /dev/kvm on this host";
  }
  if (access(binary_path().c_str(), X_OK) != 0) {
    return "the quicksave program is not built";
  }
  return std::nullopt;
}

std::string guest_path(const std::string& guest) {
  return std::string(GUESTS_DIRECTORY) + "/" + guest + ".elf";
}

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::stringstream content;
  content << stream.rdbuf();
  return content.str();
}

void write_file(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
}

void make_disk(const std::string& path, unsigned long long bytes) {
  write_file(path, "");
  std::filesystem::resize_file(path, bytes);
}

VmHome::VmHome() {
  // Short: socket paths below it are limited to 107 characters.
  char pattern[] = "/tmp/qsn-XXXXXX";
  path_ = mkdtemp(pattern);
}

VmHome::~VmHome() {
  for (const std::filesystem::directory_entry& vm :
       std::filesystem::is_directory(path_ + "/vms")
           ? std::filesystem::directory_iterator(path_ + "/vms")
           : std::filesystem::directory_iterator()) {
    std::string name = vm.path().filename();
    if (pid_t pid = pid_of(name); pid > 0) {
      kill(pid, SIGKILL);
    }
    if (::testing::Test::HasFailure()) {
      for (const char* log : {"/console.log", "/vmm.log"}) {
        std::string text = read_file(vm.path().string() + log);
        size_t shown = std::min<size_t>(text.size(), 4000);
        std::cerr << "--- " << name << log << " (last " << shown << " bytes)\n"
                  << text.substr(text.size() - shown) << "\n";
      }
    }
  }
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

CommandResult VmHome::quicksave(const std::vector<std::string>& arguments,
                                std::chrono::seconds patience,
                                const std::vector<std::string>& environment) const {
  return finish(begin(arguments, environment), patience);
}

pid_t VmHome::begin(const std::vector<std::string>& arguments,
                    const std::vector<std::string>& environment) const {
  // Files, not pipes: what a detached VM inherits must not keep this waiting.
  std::string out = path_ + "/.out", err = path_ + "/.err";
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_addopen(&actions, 2, err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  std::vector<std::string> words = prefix_;
  words.push_back(binary_path());
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<std::string> variables = environment_for(path_, environment);
  pid_t pid = -1;
  int failed = posix_spawnp(&pid, words[0].c_str(), &actions, nullptr, pointers(words).data(),
                            pointers(variables).data());
  posix_spawn_file_actions_destroy(&actions);
  return failed ? -1 : pid;
}

CommandResult VmHome::finish(pid_t pid, std::chrono::seconds patience) const {
  std::string out = path_ + "/.out", err = path_ + "/.err";
  CommandResult result;
  if (pid > 0) {
    result.status = wait_for_process(pid, patience);
  }
  result.out = read_file(out);
  result.err = read_file(err);
  unlink(out.c_str());
  unlink(err.c_str());
  return result;
}

nlohmann::json VmHome::quicksave_json(std::vector<std::string> arguments) const {
  arguments.push_back("--json");
  CommandResult result = quicksave(arguments);
  EXPECT_EQ(result.status, 0) << arguments[0] << ": " << result.err;
  nlohmann::json value = nlohmann::json::parse(result.out, nullptr, false);
  EXPECT_FALSE(value.is_discarded()) << "not JSON: " << result.out;
  return value.is_discarded() ? nlohmann::json() : value;
}

std::string VmHome::state_of(const std::string& vm) const {
  nlohmann::json all = nlohmann::json::parse(quicksave({"ps", "--json"}).out, nullptr, false);
  if (all.is_array()) {
    for (const nlohmann::json& entry : all) {
      if (entry.value("name", "") == vm) {
        return entry.value("state", "");
      }
    }
  }
  return "";
}

pid_t VmHome::pid_of(const std::string& vm) const {
  nlohmann::json all = nlohmann::json::parse(quicksave({"ps", "--json"}).out, nullptr, false);
  if (all.is_array()) {
    for (const nlohmann::json& entry : all) {
      if (entry.value("name", "") == vm && entry.contains("pid") && entry["pid"].is_number()) {
        return entry["pid"].get<pid_t>();
      }
    }
  }
  return 0;
}

std::vector<std::string> VmHome::tree() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(path_)) {
    names.push_back(std::filesystem::relative(entry.path(), path_));
  }
  std::sort(names.begin(), names.end());
  return names;
}

VmProcess::~VmProcess() { forget_connection(); }

void VmProcess::start(const std::string& guest, std::vector<std::string> options,
                      const std::vector<std::string>& environment) {
  std::vector<std::string> arguments = {"run",      "--name",          name_,
                                        "--kernel", guest_path(guest), "-d"};
  if (std::find(options.begin(), options.end(), "-m") == options.end()) {
    options.insert(options.end(), {"-m", "64M"});
  }
  arguments.insert(arguments.end(), options.begin(), options.end());
  CommandResult result = home_.quicksave(arguments, kPatience, environment);
  ASSERT_EQ(result.status, 0) << result.err;
}

void VmProcess::start_from(const std::string& vm_and_snapshot, std::vector<std::string> options) {
  std::vector<std::string> arguments = {"restore", vm_and_snapshot, "--name", name_, "-d"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  CommandResult result = home_.quicksave(arguments);
  ASSERT_EQ(result.status, 0) << result.err;
}

std::string VmProcess::log() const {
  return read_file(home_.path() + "/vms/" + name_ + "/console.log");
}

std::optional<size_t> VmProcess::wait_for(const std::string& text, size_t from,
                                          std::chrono::seconds patience) const {
  // A test that has failed already only has to end.
  Clock::time_point end =
      Clock::now() + (::testing::Test::HasFailure() ? std::chrono::seconds(1) : patience);
  for (;;) {
    std::string content = log();
    size_t found = content.find(text, from);
    if (found != std::string::npos) {
      return found + text.size();
    }
    if (Clock::now() > end) {
      ADD_FAILURE() << "'" << text << "' did not come from " << name_ << "; its last words: "
                    << content.substr(content.size() > 500 ? content.size() - 500 : 0);
      return std::nullopt;
    }
    std::this_thread::sleep_for(kLookAgain);
  }
}

bool VmProcess::wait_until_gone(std::chrono::seconds patience) const {
  Clock::time_point end = Clock::now() + patience;
  for (;;) {
    std::string state = home_.state_of(name_);
    // While its disks are being closed it answers nobody.
    if (state == "stopped" || state == "halted" || state.empty()) {
      return true;
    }
    if (Clock::now() > end) {
      ADD_FAILURE() << name_ << " is still " << state;
      return false;
    }
    std::this_thread::sleep_for(10 * kLookAgain);
  }
}

void VmProcess::forget_connection() {
  if (socket_ >= 0) {
    close(socket_);
    socket_ = -1;
  }
}

void VmProcess::send(const std::string& bytes) {
  if (socket_ < 0) {
    socket_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::string path = home_.path() + "/run/" + name_ + "/console.sock";
    ASSERT_LT(path.size(), sizeof(address.sun_path));
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    ASSERT_EQ(connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0)
        << path << ": " << strerror(errno);
  }
  // What the console sends us is in the log too; a reader that does not read is skipped, not waited
  // for.
  char discarded[65536];
  while (recv(socket_, discarded, sizeof(discarded), MSG_DONTWAIT) > 0) {
  }
  ASSERT_EQ(::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(bytes.size()));
}

std::string VmProcess::ask(const std::string& command, std::chrono::seconds patience) {
  std::string marker = "m" + std::to_string(getpid()) + "-" + std::to_string(++asked_);
  size_t from = log().size();
  send("echo " + marker + "<\n" + command + "\necho " + marker + ">\n");
  std::string before = "ECHO " + marker + "<\n", after = "ECHO " + marker + ">\n";
  std::optional<size_t> end = wait_for(after, from, patience);
  if (!end) {
    return "";
  }
  std::string content = log();
  size_t start = content.find(before, from) + before.size();
  return content.substr(start, *end - after.size() - start);
}

nlohmann::json VmProcess::snapshot(const std::string& snapshot) const {
  return home_.quicksave_json({"snapshot", "create", name_, snapshot});
}

nlohmann::json VmProcess::revert(const std::string& snapshot, std::vector<std::string> options) {
  std::vector<std::string> arguments = {"revert", name_, snapshot};
  arguments.insert(arguments.end(), options.begin(), options.end());
  return home_.quicksave_json(arguments);
}

int VmProcess::wait_for_exit(std::chrono::seconds patience) const {
  std::optional<size_t> position = wait_for("GUEST-EXIT ", 0, patience);
  if (!position || !wait_until_gone(patience)) {
    return -1;
  }
  return std::atoi(log().c_str() + *position);
}

}  // namespace native
