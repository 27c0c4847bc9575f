#include "vmm/base/directories.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace base {
namespace {

TEST(Directories, AreMadeWithThoseAbove) {
  std::string root = std::filesystem::temp_directory_path() / "quicksave-test-XXXXXX";
  ASSERT_NE(::mkdtemp(root.data()), nullptr);
  EXPECT_TRUE(make_directories(root + "/a/b/c"));
  EXPECT_TRUE(make_directories(root + "/a/b/c"));
  EXPECT_TRUE(std::filesystem::is_directory(root + "/a/b/c"));
  std::ofstream(root + "/file") << "no directory";
  EXPECT_EQ(make_directories(root + "/file").error().kind(), ErrorKind::exists);
  EXPECT_FALSE(make_directories(root + "/file/a"));
  std::filesystem::remove_all(root);
}

// In /proc a name is missing, says mkdir(2), though its parent is there: asking again and again for
// the parent ran out of stack.
TEST(Directories, WhereNoneCanBeMadeThatIsSaid) {
  const Result<void> made = make_directories("/proc/nope/vms");
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().kind(), ErrorKind::not_found);
  EXPECT_NE(made.error().message().find("\"/proc/nope\""), std::string::npos);
}

}  // namespace
}  // namespace base
