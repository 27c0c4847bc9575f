#include "blockdev/image_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "blockdev/disk.h"
#include "blockdev/image_chain.h"
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

TEST(ImageLock, WhatWeWriteQemuNeitherWritesNorReads) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string path = dir.path("x.qcow2");
  run_ok("qemu-img create -q -f qcow2 " + path + " 1M");
  const std::string read = "qemu-io -r -f qcow2 -c 'read -q 0 512' " + path;
  const std::string write = "qemu-io -f qcow2 -c 'write -q 0 512' " + path;
  {
    const ImageFile writer = open_image_file_for_writing(path, ImageFormat::qcow2).value();
    EXPECT_THAT(run_command(read).output, HasSubstr("lock"));
    EXPECT_THAT(run_command(write).output, HasSubstr("lock"));
    EXPECT_EQ(open_image_file(path, ImageFormat::qcow2).error().kind(), ErrorKind::busy);
    EXPECT_EQ(open_image_file_for_writing(path, ImageFormat::qcow2).error().kind(),
              ErrorKind::busy);
    // Frozen: readers come in, writers do not.
    keep_lock_of_reader(writer.fd.get());
    run_ok(read);
    EXPECT_THAT(run_command(write).output, HasSubstr("lock"));
    EXPECT_TRUE(open_image_file(path, ImageFormat::qcow2));
    EXPECT_EQ(open_image_file_for_writing(path, ImageFormat::qcow2).error().kind(),
              ErrorKind::busy);
  }
  run_ok(write);
}

// A program that waits with an image open, until the object goes.
class Holder final {
 public:
  explicit Holder(const std::string& command)
      : stream_(::popen(("exec " + command + " >/dev/null 2>&1").c_str(), "w")) {}
  ~Holder() { ::pclose(stream_); }

 private:
  std::FILE* const stream_;
};

TEST(ImageLock, WhatQemuReadsOrWritesWeDoNotWrite) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string path = dir.path("x.qcow2");
  run_ok("qemu-img create -q -f qcow2 " + path + " 1M");
  for (const char* mode : {"-r ", ""}) {
    const Holder holder("qemu-io " + std::string(mode) + "-f qcow2 " + path);
    Result<ImageFile> writer = open_image_file_for_writing(path, ImageFormat::qcow2);
    for (int i = 0; i < 200 && writer; ++i) {
      writer->fd.reset();
      ::usleep(20'000);
      writer = open_image_file_for_writing(path, ImageFormat::qcow2);
    }
    ASSERT_FALSE(writer) << mode;
    EXPECT_EQ(writer.error().kind(), ErrorKind::busy);
    EXPECT_THAT(writer.error().message(), HasSubstr("is locked by pid "));
    EXPECT_THAT(writer.error().message(), HasSubstr("(qemu-io)"));
    EXPECT_THAT(writer.error().hint(), HasSubstr("mode=overlay"));
  }
  EXPECT_TRUE(open_image_file_for_writing(path, ImageFormat::qcow2));
}

TEST(ImageLock, WritableChainHoldsItsTopForWritingAndTheRestForReading) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  run_ok("qemu-img create -q -f qcow2 " + dir.path("base.qcow2") + " 1M");
  run_ok("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 " + dir.path("top.qcow2"));
  const DiskSpec spec =
      parse_disk_spec(dir.path("top.qcow2") +
                      ",format=qcow2,mode=persist,backing=" + dir.path("base.qcow2") + ":qcow2")
          .value();
  const WritableChain chain = open_writable_chain(spec).value();
  EXPECT_EQ(chain.below.layers.size(), 1u);
  EXPECT_EQ(chain.below.images.size(), 2u);
  EXPECT_EQ(chain.top.identity, chain.below.images.front());
  EXPECT_THAT(run_command("qemu-io -r -f qcow2 -c 'read -q 0 512' " + dir.path("top.qcow2")).output,
              HasSubstr("lock"));
  run_ok("qemu-io -r -f qcow2 -c 'read -q 0 512' " + dir.path("base.qcow2"));
  EXPECT_THAT(run_command("qemu-io -f qcow2 -c 'write 0 512' " + dir.path("base.qcow2")).output,
              HasSubstr("lock"));
}

}  // namespace
}  // namespace blockdev::test
