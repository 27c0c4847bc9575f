#include "blockdev/image_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "blockdev/disk.h"
#include "tests/blockdev/support/qemu_tools.h"

namespace blockdev::test {
namespace {

using testing::HasSubstr;

TEST(ImageLock, QemuRefusesToWriteWhatWeRead) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string path = dir.path("x.qcow2");
  run_ok("qemu-img create -q -f qcow2 " + path + " 1M");
  const DiskSpec spec = parse_disk_spec(path + ",format=qcow2").value();
  {
    const auto disk = open_disk(spec, {}).value();
    const auto second = open_disk(spec, {});
    EXPECT_TRUE(second) << "readers share: " << second.error().message();
    const CommandResult writer = run_command("qemu-io -f qcow2 -c 'write 0 512' " + path);
    EXPECT_THAT(writer.output, HasSubstr("lock"));
    EXPECT_EQ(run_command("qemu-img resize -q -f qcow2 " + path + " 2M").status, 1);
    run_ok("qemu-io -r -f qcow2 -c 'read -q 0 512' " + path);
  }
  run_ok("qemu-io -f qcow2 -c 'write -q 0 512' " + path);
}

TEST(ImageLock, WhatQemuWritesIsRefusedWithItsName) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string path = dir.path("x.qcow2");
  run_ok("qemu-img create -q -f qcow2 " + path + " 1M");
  // qemu-io waits for its next command while it holds the image.
  std::FILE* writer = ::popen(("exec qemu-io -f qcow2 " + path + " >/dev/null 2>&1").c_str(), "w");
  ASSERT_NE(writer, nullptr);
  const DiskSpec spec = parse_disk_spec(path + ",format=qcow2").value();
  Result<std::unique_ptr<Disk>> disk = open_disk(spec, {});
  for (int i = 0; i < 200 && disk; ++i) {
    disk->reset();
    ::usleep(20'000);
    disk = open_disk(spec, {});
  }
  ASSERT_FALSE(disk);
  EXPECT_EQ(disk.error().kind(), ErrorKind::busy);
  EXPECT_THAT(disk.error().message(), HasSubstr("is locked for writing by pid "));
  EXPECT_THAT(disk.error().message(), HasSubstr("(qemu-io)"));
  ::pclose(writer);
  EXPECT_TRUE(open_disk(spec, {}));
}

}  // namespace
}  // namespace blockdev::test
