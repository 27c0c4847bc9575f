// The loader on kernels as Debian ships them, where a build has fetched some (build/guests) or the
// host has its own.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>

#include "tests/vmm/boot/support/kernel_files.h"
#include "vmm/boot/layout.h"

namespace {

using boot_test::TemporaryFile;

// Searched upwards from the working directory, since a test runs somewhere below build/.
std::vector<std::string> real_kernels() {
  std::vector<std::string> found;
  std::filesystem::path directory = std::filesystem::current_path();
  for (; directory != directory.parent_path(); directory = directory.parent_path()) {
    for (const char* name : {"vmlinuz-cloud", "vmlinuz-generic"}) {
      for (const char* place : {"build/guests/kernels", "guests/kernels"}) {
        const std::filesystem::path path = directory / place / name;
        if (std::filesystem::exists(path)) found.push_back(path.string());
      }
    }
  }
  return found;
}

TEST(RealKernel, StockBzImageIsLoaded) {
  const std::vector<std::string> kernels = real_kernels();
  if (kernels.empty()) GTEST_SKIP() << "no vmlinuz under build/guests/kernels";
  for (const std::string& path : kernels) {
    const auto memory = boot_test::make_memory(256 * base::kMiB);
    const auto registers = boot::load_kernel(*memory, {.kernel_path = path});
    ASSERT_TRUE(registers) << registers.error().message();
    EXPECT_EQ(registers->rip, 0x1000200u);
  }
}

TEST(RealKernel, EveryTruncationIsRefused) {
  const std::vector<std::string> kernels = real_kernels();
  if (kernels.empty()) GTEST_SKIP() << "no vmlinuz under build/guests/kernels";
  const std::string content = *base::read_whole_file(kernels[0], 64 * base::kMiB);
  const TemporaryFile file(boot_test::Bytes(content.begin(), content.end()));
  const auto header = [&] {
    boot::SetupHeader value;
    std::memcpy(&value, content.data() + boot::kSetupHeaderOffset, sizeof value);
    return value;
  }();
  const u64 needed = (header.setup_sects + u64{1}) * 512 + u64{header.syssize} * 16;
  ASSERT_LE(needed, content.size());
  // From the end down, so that one file serves: all of the last bytes, then ever larger steps.
  for (u64 cut = 1; cut < needed; cut += cut < 64 ? 1 : cut / 16) {
    ASSERT_EQ(::truncate(file.path().c_str(), static_cast<off_t>(needed - cut)), 0);
    const auto memory = boot_test::make_memory(128 * base::kMiB);
    const auto result = boot::load_kernel(*memory, {.kernel_path = file.path()});
    ASSERT_FALSE(result) << "taken with " << cut << " bytes missing";
    EXPECT_THAT(result.error().message(), testing::HasSubstr(file.path()));
  }
}

}  // namespace
