#include "tests/blockdev/support/qemu_tools.h"

#include <fcntl.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "vmm/base/fd.h"
#include "vmm/base/wire.h"

namespace blockdev::test {

TempDir::TempDir(const std::string& below) : root_(below + "/quicksave-test-XXXXXX") {
  EXPECT_NE(::mkdtemp(root_.data()), nullptr);
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(root_, ignored);
}

bool has_qemu_tools() {
  static const bool has =
      std::system("qemu-img --version >/dev/null 2>&1 && qemu-io --version >/dev/null 2>&1") == 0;
  return has;
}

CommandResult run_command(const std::string& command) {
  CommandResult result;
  std::FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return {-1, "popen failed"};
  char buffer[4096];
  while (const std::size_t count = std::fread(buffer, 1, sizeof buffer, pipe)) {
    result.output.append(buffer, count);
  }
  const int status = ::pclose(pipe);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return result;
}

std::string run_ok(const std::string& command) {
  const CommandResult result = run_command(command);
  EXPECT_EQ(result.status, 0) << command << "\n" << result.output;
  return result.output;
}

std::vector<u8> read_file(const std::string& path) {
  const base::Fd fd = base::open_file(path, O_RDONLY).value();
  std::vector<u8> bytes(base::file_size(fd).value());
  EXPECT_TRUE(base::read_exactly(fd, bytes, 0)) << path;
  return bytes;
}

void write_file(const std::string& path, std::span<const u8> bytes) {
  const base::Fd fd = base::open_file(path, O_RDWR | O_CREAT | O_TRUNC).value();
  EXPECT_TRUE(base::write_exactly(fd, bytes, 0)) << path;
}

void poke_file(const std::string& path, u64 offset, std::span<const u8> bytes) {
  const base::Fd fd = base::open_file(path, O_RDWR).value();
  EXPECT_TRUE(base::write_exactly(fd, bytes, offset)) << path;
}

void poke_be32(const std::string& path, u64 offset, u32 value) {
  const be32 wire(value);
  u8 bytes[4];
  std::memcpy(bytes, &wire, 4);
  poke_file(path, offset, bytes);
}

void poke_be64(const std::string& path, u64 offset, u64 value) {
  const be64 wire(value);
  u8 bytes[8];
  std::memcpy(bytes, &wire, 8);
  poke_file(path, offset, bytes);
}

}  // namespace blockdev::test
