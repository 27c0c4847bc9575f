// New images, empty and built cluster by cluster, before the judge: qemu-img check, and what
// qemu-img reads out of them.

#include "blockdev/qcow2_create.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <random>

#include "blockdev/block_backend.h"
#include "blockdev/qcow2_builder.h"
#include "blockdev/qcow2_image.h"
#include "tests/blockdev/support/header_exchange.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "vmm/base/ranges.h"

namespace blockdev::test {
namespace {

using qcow2::Builder;
using qcow2::L2Entries;
using qcow2::NewImage;

base::Fd new_file(const std::string& path) {
  return base::open_file(path, O_RDWR | O_CREAT | O_TRUNC, 0644).value();
}

struct Shape {
  const char* name;
  u32 cluster_bits;
  L2Entries l2_entries;
};

class NewImageOf : public testing::TestWithParam<Shape> {
 protected:
  NewImage image(u64 size_bytes) const {
    return {size_bytes, GetParam().cluster_bits, GetParam().l2_entries, "", ""};
  }
  u64 cluster() const { return u64{1} << GetParam().cluster_bits; }
  bool is_extended() const { return GetParam().l2_entries == L2Entries::extended; }

  const TempDir dir_;
  const std::string path_ = dir_.path("a.qcow2");
};

TEST_P(NewImageOf, ShapeIsCleanEmptyAndWritableByQemu) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const u64 size = 64 * base::kMiB + 512;
  ASSERT_TRUE(qcow2::create_image(new_file(path_), image(size)));
  run_ok("qemu-img check -q -f qcow2 " + path_);
  run_ok(fmt::format("qemu-io -f qcow2 -r -c 'read -q -P 0 0 {}' {}", size, path_));
  run_ok(fmt::format("qemu-io -f qcow2 -c 'write -q -P 7 1000k 30M' -c 'write -q -P 8 {} 512' {}",
                     size - 512, path_));
  run_ok("qemu-img check -q -f qcow2 " + path_);
}

// Every subcluster by chance: data, zero, or nothing, over a backing file of 0xbb.
TEST_P(NewImageOf, ShapeReadsAsBuilt) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const u64 clusters = is_extended() ? 40 : std::min<u64>(1200, 64 * base::kMiB / cluster());
  const u64 size = clusters * cluster() - 1024 % cluster();
  const u64 units = is_extended() ? 32 : 1;
  const u64 unit = cluster() / units;
  std::vector<u8> expected(clusters * cluster(), 0xbb);
  write_file(dir_.path("base.raw"), expected);
  NewImage wanted = image(size);
  wanted.backing_name = dir_.path("base.raw");
  wanted.backing_format = "raw";
  std::mt19937 random(3);
  {
    const base::Fd fd = new_file(path_);
    Builder builder = Builder::create(fd, wanted).value();
    std::vector<u8> content(cluster());
    for (u64 i = 0; i < clusters; ++i) {
      u64 bitmap = 0;
      for (u64 k = 0; k < units; ++k) {
        const u64 kind = random() % 4;  // two of four are left out
        if (kind > 1) continue;
        bitmap |= kind == 0 ? u64{1} << k : u64{1} << (32 + k);
        const u8 value = kind == 0 ? static_cast<u8>(1 + i % 200) : 0;
        std::fill_n(content.data() + k * unit, unit, value);
        std::fill_n(expected.data() + i * cluster() + k * unit, unit, value);
      }
      if (bitmap == 0) continue;
      ASSERT_TRUE(builder.add_cluster(i, bitmap, content));
    }
    ASSERT_TRUE(builder.finish());
  }
  expected.resize(size);
  run_ok("qemu-img check -q -f qcow2 " + path_);
  run_ok(fmt::format("qemu-img convert -f qcow2 -O raw {} {}", path_, dir_.path("read.raw")));
  EXPECT_EQ(read_file(dir_.path("read.raw")), expected);
}

INSTANTIATE_TEST_SUITE_P(Shapes, NewImageOf,
                         testing::Values(Shape{"cs512", 9, L2Entries::standard},
                                         Shape{"cs4k", 12, L2Entries::standard},
                                         Shape{"cs64k", 16, L2Entries::standard},
                                         Shape{"cs2M", 21, L2Entries::standard},
                                         Shape{"ext16k", 14, L2Entries::extended},
                                         Shape{"ext128k", 17, L2Entries::extended}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Qcow2Create, QemuFindsTheBackingFormatAndWeFindQemus) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  EXPECT_EQ(exchange_backing_formats(dir.root()), std::vector<std::string>{});
}

TEST(Qcow2Create, CostsTheSameForEverySizeOfDisk) {
  const TempDir dir;
  u64 blocks_of_small = 0;
  for (const u64 size : {base::kMiB, 64 * base::kGiB, 1024 * base::kGiB}) {
    const std::string path = dir.path("a.qcow2");
    const base::Fd fd = new_file(path);
    const auto start = std::chrono::steady_clock::now();
    ASSERT_TRUE(qcow2::create_image(fd, qcow2::overlay_image(size, "base.raw", "raw")));
    const auto taken = std::chrono::steady_clock::now() - start;
    // Ten times what it takes, for a busy machine.
    EXPECT_LT(taken, std::chrono::milliseconds(10)) << size;
    struct stat status {};
    ASSERT_EQ(::fstat(fd.get(), &status), 0);
    if (blocks_of_small == 0) blocks_of_small = static_cast<u64>(status.st_blocks);
    EXPECT_EQ(static_cast<u64>(status.st_blocks), blocks_of_small) << size;
  }
}

TEST(Qcow2Create, LargestDiskIsClean) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string path = dir.path("a.qcow2");
  ASSERT_TRUE(qcow2::create_image(
      new_file(path),
      {.size_bytes = kMaxDiskBytes, .cluster_bits = 16, .backing_name = "", .backing_format = ""}));
  run_ok("qemu-img check -q -f qcow2 " + path);
}

TEST(Qcow2Create, WhatCannotBeIsRefused) {
  const auto refused = [](NewImage image) { return !qcow2::check_new_image(image); };
  const NewImage sound = {base::kMiB, 16, L2Entries::standard, "base", "raw"};
  EXPECT_FALSE(refused(sound));
  NewImage image = sound;
  image.size_bytes = 0;
  EXPECT_TRUE(refused(image));
  image.size_bytes = 513;
  EXPECT_TRUE(refused(image));
  image.size_bytes = kMaxDiskBytes + 512;
  EXPECT_TRUE(refused(image));
  image = sound;
  image.cluster_bits = 8;
  EXPECT_TRUE(refused(image));
  image.cluster_bits = 22;
  EXPECT_TRUE(refused(image));
  image.cluster_bits = 9;
  image.size_bytes = 1024 * base::kGiB;  // its L1 table would be larger than any reader takes
  EXPECT_TRUE(refused(image));
  image = sound;
  image.cluster_bits = 13;
  image.l2_entries = L2Entries::extended;
  EXPECT_TRUE(refused(image));
  image = sound;
  image.backing_format = "";
  EXPECT_TRUE(refused(image));
  image = sound;
  image.backing_name = std::string(1024, 'x');
  EXPECT_TRUE(refused(image));
}

TEST(Qcow2Create, NameThatDoesNotFitIntoTheHeadersClusterIsRefused) {
  const TempDir dir;
  const base::Fd fd = new_file(dir.path("a.qcow2"));
  const NewImage image = {base::kMiB, 9, L2Entries::standard, std::string(400, 'x'), "raw"};
  const Result<void> result = qcow2::create_image(fd, image);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind(), ErrorKind::usage);
}

}  // namespace
}  // namespace blockdev::test
