// Every kind of image that we read, made by qemu-img: our content must be what QEMU converts to
// raw.

#include <gtest/gtest.h>

#include "blockdev/disk.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/test_client.h"
#include "vmm/base/ranges.h"

namespace blockdev::test {
namespace {

std::vector<u8> read_disk(const std::string& spec_text) {
  const Result<DiskSpec> spec = parse_disk_spec(spec_text);
  EXPECT_TRUE(spec) << spec.error().message();
  Result<std::unique_ptr<Disk>> disk = open_disk(*spec, {});
  EXPECT_TRUE(disk) << spec_text << ": " << disk.error().message();
  if (!disk) return {};
  TestClient client(*(*disk)->backend);
  std::vector<u8> all((*disk)->backend->size_bytes());
  // A size that is no divisor of anything crosses all boundaries.
  for (u64 at = 0; at < all.size();) {
    const u64 piece = std::min<u64>(all.size() - at, 512 * 211);
    EXPECT_EQ(client.read(at, std::span(all).subspan(at, piece)), BlockStatus::ok) << at;
    at += piece;
  }
  return all;
}

std::vector<u8> qemu_content(const TempDir& dir, const std::string& image) {
  run_ok("qemu-img convert -U -f qcow2 -O raw " + image + " " + dir.path("expected.raw"));
  return read_file(dir.path("expected.raw"));
}

struct ImageCase {
  const char* name;
  const char* options;
};

class QemuImage : public testing::TestWithParam<ImageCase> {};

TEST_P(QemuImage, ReadsAsQemuDoes) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string image = dir.path("a.qcow2");
  run_ok(fmt::format("qemu-img create -q -f qcow2 -o {} {} 9M", GetParam().options, image));
  run_ok(
      "qemu-io -f qcow2 -c 'write -q -P 1 0 64k' -c 'write -q -P 2 100k 300k' "
      "-c 'write -q -P 3 4095k 1025k' -c 'write -q -z 128k 64k' -c 'write -q -P 4 3M 5k' "
      "-c 'discard -q 140k 700k' -c 'write -q -P 5 9215k 1k' -c 'write -q -z 4100k 13k' " +
      image);
  EXPECT_EQ(read_disk(image + ",format=qcow2,mode=ro"), qemu_content(dir, image));
}

INSTANTIATE_TEST_SUITE_P(
    Options, QemuImage,
    testing::Values(ImageCase{"v2", "compat=0.10"}, ImageCase{"v3", "compat=1.1"},
                    ImageCase{"cs512", "cluster_size=512"},
                    ImageCase{"cs512v2", "cluster_size=512,compat=0.10"},
                    ImageCase{"cs4k", "cluster_size=4k"}, ImageCase{"cs2M", "cluster_size=2M"},
                    ImageCase{"ext16k", "extended_l2=on,cluster_size=16k"},
                    ImageCase{"ext64k", "extended_l2=on"},
                    ImageCase{"ext128k", "extended_l2=on,cluster_size=128k"},
                    ImageCase{"ext2M", "extended_l2=on,cluster_size=2M"},
                    ImageCase{"metadata", "preallocation=metadata"},
                    ImageCase{"falloc", "preallocation=falloc"},
                    ImageCase{"full", "preallocation=full"}, ImageCase{"lazy", "lazy_refcounts=on"},
                    ImageCase{"rc1", "refcount_bits=1"}, ImageCase{"rc64", "refcount_bits=64"}),
    [](const auto& test) { return std::string(test.param.name); });

class QemuCompressed : public testing::TestWithParam<ImageCase> {};

TEST_P(QemuCompressed, ReadsAsQemuDoes) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  std::vector<u8> plain(3 * base::kMiB + 512 * 3, 0);
  // Text-like, random and zero stretches.
  const std::vector<u8> noise = pattern(base::kMiB, 7);
  std::copy(noise.begin(), noise.end(), plain.begin() + 512 * 1000);
  for (u64 i = 0; i < 512 * 900; ++i) plain[i] = static_cast<u8>(i / 37);
  write_file(dir.path("plain.raw"), plain);
  const std::string image = dir.path("c.qcow2");
  run_ok(fmt::format("qemu-img convert -c -f raw -O qcow2 -o {} {} {}", GetParam().options,
                     dir.path("plain.raw"), image));
  EXPECT_EQ(read_disk(image + ",format=qcow2"), plain);
}

INSTANTIATE_TEST_SUITE_P(
    Options, QemuCompressed,
    testing::Values(ImageCase{"zlib", "compression_type=zlib"}, ImageCase{"zlib_v2", "compat=0.10"},
                    ImageCase{"zlib512", "cluster_size=512"},
                    ImageCase{"zlib2M", "cluster_size=2M"},
                    ImageCase{"zstd", "compression_type=zstd"},
                    ImageCase{"zstd4k", "compression_type=zstd,cluster_size=4k"},
                    ImageCase{"zstd2M", "compression_type=zstd,cluster_size=2M"},
                    ImageCase{"zstd_ext", "compression_type=zstd,extended_l2=on"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(ImageChain, FourLevelsOfDifferentSizesReadAsQemuDoes) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  write_file(dir.path("base.raw"), pattern(5 * base::kMiB / 2, 1));
  const auto create = [&](const char* options, const char* below, const char* format,
                          const char* name, const char* size) {
    run_ok(fmt::format("cd {} && qemu-img create -q -f qcow2 -o {} -b {} -F {} {} {}", dir.root(),
                       options, below, format, name, size));
  };
  create("cluster_size=4k", "base.raw", "raw", "one.qcow2", "4M");
  run_ok(
      "qemu-io -f qcow2 -c 'write -q -P 1 1M 70k' -c 'write -q -z 2M 100k' -c "
      "'write -q -P 9 3M 1M' " +
      dir.path("one.qcow2"));
  create("compat=0.10", "one.qcow2", "qcow2", "two.qcow2", "2M");
  run_ok("qemu-io -f qcow2 -c 'write -q -P 2 300k 70k' " + dir.path("two.qcow2"));
  create("extended_l2=on,cluster_size=128k", "two.qcow2", "qcow2", "top.qcow2", "6M");
  run_ok(
      "qemu-io -f qcow2 -c 'write -q -P 3 8k 4k' -c 'write -q -z 1040k 9k' -c "
      "'write -q -P 4 5M 1k' " +
      dir.path("top.qcow2"));
  const std::vector<u8> expected = qemu_content(dir, dir.path("top.qcow2"));
  EXPECT_EQ(read_disk(fmt::format("{0}/top.qcow2,format=qcow2,backing={0}/two.qcow2:qcow2,"
                                  "backing={0}/one.qcow2:qcow2,backing={0}/base.raw:raw",
                                  dir.root())),
            expected);
  EXPECT_EQ(read_disk(fmt::format("{0}/top.qcow2,format=qcow2,backing-dir={0}", dir.root())),
            expected);
}

TEST(RawImage, LastSectorIsPaddedWithZeros) {
  const TempDir dir;
  write_file(dir.path("a.raw"), pattern(1000, 3));
  std::vector<u8> expected = pattern(1000, 3);
  expected.resize(1024, 0);
  EXPECT_EQ(read_disk(dir.path("a.raw") + ",format=raw"), expected);
}

TEST(RawImage, Qcow2MagicInARawImageIsNotLookedAt) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  run_ok("qemu-img create -q -f qcow2 " + dir.path("a.raw") + " 1M");
  EXPECT_EQ(read_disk(dir.path("a.raw") + ",format=raw").size(),
            base::align_up(read_file(dir.path("a.raw")).size(), 512));
}

}  // namespace
}  // namespace blockdev::test
