#include "blockdev/qcow2_backing_name.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/blockdev/support/qemu_tools.h"

namespace blockdev::test {
namespace {

using testing::HasSubstr;

TEST(Qcow2BackingName, IsTheNewOneForQemuAndNothingElseChanges) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  run_ok("qemu-img create -q -f qcow2 " + dir.path("base") + " 1M");
  run_ok("qemu-io -f qcow2 -c 'write -q -P 5 0 64k' " + dir.path("base"));
  for (const char* options : {"", "-o extended_l2=on", "-o cluster_size=4096"}) {
    const std::string top = dir.path("top");
    run_ok(fmt::format("qemu-img create -q -f qcow2 {} -b base -F qcow2 {}", options, top));
    run_ok("qemu-io -f qcow2 -c 'write -q -P 6 4k 4k' " + top);
    const base::Fd fd = base::open_file(top, O_RDWR).value();
    for (const std::string& name : {dir.path("base"), std::string("./base"), std::string("base")}) {
      const Result<void> done = qcow2::set_backing_name(fd, name);
      ASSERT_TRUE(done) << done.error().message();
      const std::string info = run_ok("qemu-img info " + top);
      EXPECT_THAT(info, HasSubstr("backing file: " + name + (name[0] == '/' ? "\n" : " ")));
      EXPECT_THAT(info, HasSubstr("backing file format: qcow2"));
      run_ok("qemu-img check -q " + top);
      run_ok("qemu-io -r -f qcow2 -c 'read -q -P 5 0 4k' -c 'read -q -P 6 4k 4k' " + top);
    }
  }
}

}  // namespace
}  // namespace blockdev::test
