// VmProcess and VmHome: the real program, driven as a user's script drives it.
//
// A VmHome is a QUICKSAVE_HOME of its own in a temporary directory; nothing of one is seen in
// another. A VmProcess is a VM in it that runs one of our guests: input goes to the console socket,
// output is read from the console's log, which is complete from the first byte and keeps what the
// guest wrote before a revert. When a test has failed, the home's logs are printed before it goes.
//
// Answers are matched by a marker that is unique in the test: output of an abandoned timeline that
// comes late is never taken for an answer.
//
// Thread: one.

#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace native {

inline constexpr std::chrono::seconds kPatience{30};  // the slowest guest on a busy machine

struct CommandResult {
  int status = -1;  // 128 + signal if killed; -1 if it did not end in time
  std::string out;
  std::string err;
};

// A reason why nothing here can run, or nothing. The texts are listed in tests/skips.txt.
std::optional<std::string> why_native_cannot_run();

std::string guest_path(const std::string& guest);
std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& content);
// A raw disk of zeros.
void make_disk(const std::string& path, unsigned long long bytes);

class VmHome final {
 public:
  VmHome();
  // Kills what still runs in it, prints the logs if the test failed, removes it.
  ~VmHome();
  VmHome(const VmHome&) = delete;
  VmHome& operator=(const VmHome&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

  // Runs `quicksave ARGUMENTS` to its end.
  CommandResult quicksave(const std::vector<std::string>& arguments,
                          std::chrono::seconds patience = kPatience,
                          const std::vector<std::string>& environment = {}) const;
  // The same in two steps, for what happens meanwhile. One at a time.
  pid_t begin(const std::vector<std::string>& arguments,
              const std::vector<std::string>& environment = {}) const;
  CommandResult finish(pid_t pid, std::chrono::seconds patience = kPatience) const;
  // From now on `words` stand before the program's path: {"setpriv", "--reuid", "65534"}.
  void run_through(std::vector<std::string> words) { prefix_ = std::move(words); }
  // Runs it and expects status 0 and one JSON value on stdout; null after a failure, which is recorded.
  nlohmann::json quicksave_json(std::vector<std::string> arguments) const;
  // The `state` that `ps --json` shows for a VM; empty if it does not list it.
  std::string state_of(const std::string& vm) const;
  pid_t pid_of(const std::string& vm) const;
  // All names below the home, for "nothing left behind".
  std::vector<std::string> tree() const;

 private:
  std::string path_;
  std::vector<std::string> prefix_;
};

class VmProcess final {
 public:
  // A VM that is already there.
  VmProcess(const VmHome& home, std::string name) : home_(home), name_(std::move(name)) {}
  ~VmProcess();
  VmProcess(const VmProcess&) = delete;
  VmProcess& operator=(const VmProcess&) = delete;

  // `run -d` with a guest; records a failure if that did not work.
  void start(const std::string& guest, std::vector<std::string> options = {},
             const std::vector<std::string>& environment = {});
  // `restore SNAPSHOT --name ... -d`.
  void start_from(const std::string& vm_and_snapshot, std::vector<std::string> options = {});

  const std::string& name() const { return name_; }
  std::string log() const;
  // Waits until the log holds `text` at or after `from`; the position after it, or nothing
  // (recorded as a failure).
  std::optional<size_t> wait_for(const std::string& text, size_t from = 0,
                                 std::chrono::seconds patience = kPatience) const;
  // Waits until the VM is no longer running.
  bool wait_until_gone(std::chrono::seconds patience = kPatience) const;

  void send(const std::string& bytes);
  // Sends a command to a steered guest and returns the lines it answered.
  std::string ask(const std::string& command, std::chrono::seconds patience = kPatience);
  // Marks the input as belonging to a new timeline: a half-sent line is forgotten.
  void forget_connection();

  nlohmann::json snapshot(const std::string& snapshot) const;
  // In place, every byte of memory and state compared afterwards unless `options` says otherwise.
  nlohmann::json revert(const std::string& snapshot,
                        std::vector<std::string> options = {"--verify"});
  // The number after GUEST-EXIT, when the guest has powered off.
  int wait_for_exit(std::chrono::seconds patience = kPatience) const;

 private:
  const VmHome& home_;
  std::string name_;
  int socket_ = -1;
  unsigned asked_ = 0;
};

// The fixture of every native test: skips with a reason where nothing can run.
class NativeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::optional<std::string> reason = why_native_cannot_run()) {
      GTEST_SKIP() << *reason;
    }
  }
};

}  // namespace native
