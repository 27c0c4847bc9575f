// nbdkit with our plugin, as a child process: found, started on a socket that listens already,
// watched until it ends.
//
// This process stays beside it for two things nbdkit cannot do: say in our words why a disk could
// not be opened, and hold the lock of a snapshot. nbdkit ends when this process does, also by
// SIGKILL.
//
// Thread: one. Blocks SIGTERM, SIGINT, SIGHUP and SIGCHLD while an object lives.

#pragma once

#include <signal.h>
#include <sys/types.h>

#include <string>
#include <vector>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace image {

// In $PATH.
Result<std::string> find_nbdkit();
// $QUICKSAVE_NBDKIT_PLUGIN, or nbdkit-quicksave-plugin.so beside this program.
Result<std::string> find_nbdkit_plugin();

class NbdkitProcess final {
 public:
  // `words`: the path of nbdkit, of the plugin, and the plugin's parameters. Clients that connect
  // to `listener` before the disk is open wait.
  static Result<NbdkitProcess> start(std::vector<std::string> words, const base::Fd& listener);
  NbdkitProcess(NbdkitProcess&& other) noexcept;
  NbdkitProcess& operator=(NbdkitProcess&&) = delete;
  // Ends it if it still runs.
  ~NbdkitProcess();

  // The disk is open. Or the plugin's reason why not.
  Result<void> wait_until_ready();
  // Hands on the signals that come; returns when nbdkit has ended because of one.
  Result<void> wait_for_end();
  pid_t pid() const { return pid_; }

 private:
  NbdkitProcess() = default;

  // Waits for one signal and deals with it. pid_ is -1 once nbdkit has ended.
  void take_signal();

  pid_t pid_ = -1;  // -1: none runs
  int status_ = 0;  // of waitpid(2), once it has ended
  bool was_asked_to_end_ = false;
  sigset_t signals_before_{};
  base::Fd signals_;
  base::Fd ready_;
};

}  // namespace image
