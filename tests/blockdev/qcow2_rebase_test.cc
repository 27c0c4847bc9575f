// Changes to closed images: one sector decides. What a crash before or after it leaves is the old
// image or the new one.

#include "blockdev/qcow2_rebase.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "blockdev/qcow2_check.h"
#include "blockdev/qcow2_header.h"
#include "tests/blockdev/support/damaged_image.h"

namespace blockdev::test {
namespace {

struct Backing {
  std::string name;
  std::string format;
  bool operator==(const Backing&) const = default;
};

std::optional<Backing> backing_of(const std::string& image) {
  const base::Fd fd = base::open_file(image, O_RDONLY).value();
  const auto header = qcow2::read_header(fd, base::file_size(fd).value());
  if (!header) return std::nullopt;
  return Backing{header->backing_name, header->backing_format};
}

TEST(Qcow2Rebase, HalfWrittenHeaderNamesTheOldBackingFile) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string image = dir.path("a.qcow2");
  const std::string torn = dir.path("torn.qcow2");
  for (const char* options : {"cluster_size=64k", "cluster_size=4k", "compat=0.10"}) {
    SCOPED_TRACE(options);
    make_image(image, options);
    Backing now;
    for (const Backing& next :
         {Backing{"base.raw", "raw"}, Backing{"b", "qcow2"}, Backing{std::string(1000, 'x'), "raw"},
          Backing{std::string(1023, 'y'), "qcow2"}, Backing{"", ""}, Backing{"c.raw", "raw"}}) {
      SCOPED_TRACE(next.name.substr(0, 20));
      const std::vector<u8> before = read_file(image);
      {
        const base::Fd fd = base::open_file(image, O_RDWR).value();
        ASSERT_TRUE(qcow2::set_backing_file(fd, next.name, next.format));
      }
      const std::vector<u8> after = read_file(image);
      ASSERT_EQ(after.size(), before.size());
      EXPECT_EQ(backing_of(image), next);
      std::vector<u8> bytes = after;  // all but the first sector
      std::copy_n(before.begin(), 512, bytes.begin());
      write_file(torn, bytes);
      EXPECT_EQ(backing_of(torn), now);
      run_ok("qemu-img info -f qcow2 " + image);
      now = next;
    }
  }
}

TEST(Qcow2Rebase, NameAloneIsTheNewOneForQemuAndNothingElseChanges) {
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
      EXPECT_THAT(info,
                  testing::HasSubstr("backing file: " + name + (name[0] == '/' ? "\n" : " ")));
      EXPECT_THAT(info, testing::HasSubstr("backing file format: qcow2"));
      run_ok("qemu-img check -q " + top);
      run_ok("qemu-io -r -f qcow2 -c 'read -q -P 5 0 4k' -c 'read -q -P 6 4k 4k' " + top);
    }
  }
}

TEST(Qcow2Rebase, EmptiedImageGivesItsSpaceBack) {
  SKIP_WITHOUT_QEMU_TOOLS();
  for (const char* options : {"compat=1.1", "cluster_size=512", "extended_l2=on,cluster_size=16k",
                              "preallocation=full"}) {
    SCOPED_TRACE(options);
    const TempDir dir;
    const std::string image = dir.path("a.qcow2");
    make_image(image, options);
    const base::Fd fd = base::open_file(image, O_RDWR).value();
    ASSERT_TRUE(qcow2::empty_image(fd));
    struct stat status {};
    ASSERT_EQ(::fstat(fd.get(), &status), 0);
    EXPECT_LT(static_cast<u64>(status.st_blocks) * 512, 640 * base::kKiB);
    run_ok("qemu-img check -q -f qcow2 " + image);
    run_ok("qemu-io -f qcow2 -r -c 'read -q -P 0 0 9M' " + image);
    EXPECT_EQ(qcow2::check_image(fd).value().allocated_clusters, 0u);
  }
}

// They say of something that it fits the content (qcow2.rst, "autoclear_features").
TEST(Qcow2Rebase, UnknownAutoclearBitsGoWithTheFirstChange) {
  SKIP_WITHOUT_QEMU_TOOLS();
  for (const bool is_shrunk : {false, true}) {
    const TempDir dir;
    const std::string image = dir.path("a.qcow2");
    make_image(image, "compat=1.1");
    poke_be64(image, 88, 0x20);
    const base::Fd fd = base::open_file(image, O_RDWR).value();
    ASSERT_TRUE(is_shrunk ? qcow2::shrink_image(fd, base::kMiB) : qcow2::empty_image(fd));
    EXPECT_EQ(be64_at(read_file(image), 88), 0u);
  }
}

TEST(Qcow2Rebase, DamagedOrSharedClustersAreNotForgotten) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string image = dir.path("a.qcow2");
  make_image(image, "compat=1.1");
  run_ok("qemu-img snapshot -c one " + image);
  const std::vector<u8> before = read_file(image);
  {
    const base::Fd fd = base::open_file(image, O_RDWR).value();
    EXPECT_FALSE(qcow2::empty_image(fd));
    EXPECT_FALSE(qcow2::shrink_image(fd, base::kMiB));
  }
  EXPECT_EQ(read_file(image), before);
  make_image(image, "compat=1.1");
  const Tables tables(image);
  tables.poke(tables.l2, tables.at(tables.l2) & ~qcow2::kCopied);
  const base::Fd fd = base::open_file(image, O_RDWR).value();
  const Result<void> result = qcow2::shrink_image(fd, base::kMiB);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind(), ErrorKind::corrupt);
}

}  // namespace
}  // namespace blockdev::test
