// QEMU's own tools, as the judge of what an image holds.

#pragma once

#include <gtest/gtest.h>

#include <span>
#include <string>
#include <vector>

#include "vmm/base/types.h"

namespace blockdev::test {

// A directory that goes with the object.
class TempDir final {
 public:
  explicit TempDir(const std::string& below = "/var/tmp");
  ~TempDir();
  std::string path(const std::string& name) const { return root_ + "/" + name; }
  const std::string& root() const { return root_; }

 private:
  std::string root_;
};

bool has_qemu_tools();
#define SKIP_WITHOUT_QEMU_TOOLS() \
  if (!blockdev::test::has_qemu_tools()) GTEST_SKIP() << "qemu-img and qemu-io are not installed"

struct CommandResult {
  int status = 0;
  std::string output;  // stdout and stderr
};
CommandResult run_command(const std::string& command);
// As above; a failure of the command fails the test.
std::string run_ok(const std::string& command);

std::vector<u8> read_file(const std::string& path);
void write_file(const std::string& path, std::span<const u8> bytes);
void poke_file(const std::string& path, u64 offset, std::span<const u8> bytes);
void poke_be32(const std::string& path, u64 offset, u32 value);
void poke_be64(const std::string& path, u64 offset, u64 value);

}  // namespace blockdev::test
