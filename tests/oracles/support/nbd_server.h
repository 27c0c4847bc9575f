// NbdServer: nbdkit with our plugin, serving one disk on a unix socket, so that other people's
// tools drive our engine.

#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "tests/blockdev/support/qemu_tools.h"

namespace blockdev::test {

// A reason why nothing here can run, or nothing. The texts are listed in tests/skips.txt.
std::optional<std::string> why_oracles_cannot_run();
#define SKIP_WITHOUT_ORACLES() \
  if (const auto why_ = blockdev::test::why_oracles_cannot_run()) GTEST_SKIP() << *why_

class NbdServer final {
 public:
  // `parameters`: of the plugin ("disk=...", "layer=...").
  NbdServer(const TempDir& dir, const std::vector<std::string>& parameters);
  // A server that must end well: its images are closed and can be judged.
  ~NbdServer();
  NbdServer(const NbdServer&) = delete;
  NbdServer& operator=(const NbdServer&) = delete;

  // In quotes, for a shell.
  std::string uri() const { return "'nbd+unix:///?socket=" + socket_ + "'"; }
  // Ends it as a user does; nothing if it has ended already.
  void stop();

 private:
  std::string socket_;
  pid_t pid_ = -1;
};

// Runs qemu-io with one -c for each command, on a URI or a file. A read that finds something else
// fails the test.
void qemu_io(const std::string& target, const std::string& format,
             const std::vector<std::string>& commands);

}  // namespace blockdev::test
