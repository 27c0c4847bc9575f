// What a disk says of its content without reading it: never zero where there is data, and zero
// where a copy can leave something out.

#include <gtest/gtest.h>
#include <unistd.h>

#include "blockdev/disk.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/test_client.h"
#include "vmm/base/ranges.h"

namespace blockdev::test {
namespace {

constexpr u64 kEverything = ~u64{0};

std::unique_ptr<Disk> open_spec(const std::string& text) {
  Result<std::unique_ptr<Disk>> disk = open_disk(parse_disk_spec(text).value(), {});
  EXPECT_TRUE(disk) << text << ": " << disk.error().message();
  return std::move(*disk);
}

// "data 65536, zero 131072"
std::string content_of(const Disk& disk, u64 offset, u64 length, u64 max_runs = kEverything) {
  const Result<std::vector<ContentRun>> runs = disk.backend->map_content(offset, length, max_runs);
  EXPECT_TRUE(runs) << runs.error().message();
  std::string text;
  for (const ContentRun& run : *runs) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ",
                        run.content == Content::data ? "data" : "zero", run.length_bytes);
  }
  return text;
}
std::string content_of(const Disk& disk) { return content_of(disk, 0, disk.backend->size_bytes()); }

TEST(ContentMap, HolesOfARawFileAreZero) {
  const TempDir dir;
  const std::string path = dir.path("a.raw");
  write_file(path, {});
  ASSERT_EQ(::truncate(path.c_str(), 1 << 20), 0);
  poke_file(path, 256 << 10, std::vector<u8>(64 << 10, 7));
  const std::unique_ptr<Disk> disk = open_spec(path + ",format=raw,mode=ro");
  EXPECT_EQ(content_of(*disk), "zero 262144, data 65536, zero 720896");
  EXPECT_EQ(content_of(*disk, (256 << 10) - 512, 1024), "zero 512, data 512");
  EXPECT_EQ(content_of(*disk, 0, 1 << 20, 2), "zero 262144, data 65536") << "as many as asked for";
}

TEST(ContentMap, TheLastSectorOfAFileThatEndsWithinItIsData) {
  const TempDir dir;
  const std::string path = dir.path("a.raw");
  write_file(path, std::vector<u8>(8192 + 100, 7));
  EXPECT_EQ(content_of(*open_spec(path + ",format=raw,mode=ro")), "data 8704");
}

TEST(ContentMap, ZeroClustersHideDataBelow) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string base = dir.path("base.raw");
  write_file(base, std::vector<u8>(1 << 20, 7));
  const std::string top = dir.path("top.qcow2");
  run_ok(fmt::format("qemu-img create -q -f qcow2 -b {} -F raw {} 2M", base, top));
  run_ok("qemu-io -f qcow2 -c 'write -q -z 128k 64k' -c 'write -q -P 3 1536k 64k' " + top);
  const std::string spec = fmt::format("{},format=qcow2,mode=ro,backing={}:raw", top, base);
  // Beyond the end of the base all is zero but what the overlay has.
  EXPECT_EQ(content_of(*open_spec(spec)),
            "data 131072, zero 65536, data 851968, zero 524288, data 65536, zero 458752");
}

TEST(ContentMap, CompressedClustersAreData) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string image = dir.path("a.qcow2");
  run_ok(fmt::format("qemu-img create -q -f qcow2 {} 256k", image));
  run_ok("qemu-io -f qcow2 -c 'write -q -c -P 3 64k 64k' " + image);
  EXPECT_EQ(content_of(*open_spec(image + ",format=qcow2,mode=ro")),
            "zero 65536, data 65536, zero 131072");
}

TEST(ContentMap, TheThrowAwayLayerWinsOverWhatIsBelow) {
  const TempDir dir;
  const std::string path = dir.path("a.raw");
  write_file(path, {});
  ASSERT_EQ(::truncate(path.c_str(), 8 << 20), 0);
  poke_file(path, 4 << 20, std::vector<u8>(64 << 10, 7));
  const std::unique_ptr<Disk> disk = open_spec(path + ",format=raw");
  TestClient client(*disk->backend);
  ASSERT_EQ(client.write(512, std::vector<u8>(512, 1)), BlockStatus::ok);
  ASSERT_EQ(client.zero(BlockOp::discard, (4 << 20) + 4096, 4096), BlockStatus::ok);
  ASSERT_EQ(client.zero(BlockOp::write_zeroes, 6 << 20, 2 << 20), BlockStatus::ok);
  EXPECT_EQ(content_of(*disk),
            "data 4096, zero 4190208, data 4096, zero 4096, data 57344, zero 4128768");
  EXPECT_EQ(content_of(*disk, (4 << 20) + 3584, 1024), "data 512, zero 512");
}

// Random writes and zeroes: a run that is called zero must read as zeros.
TEST(ContentMap, NothingThatHoldsDataIsCalledZero) {
  const TempDir dir;
  const std::string path = dir.path("a.raw");
  write_file(path, std::vector<u8>(1 << 20, 7));
  const std::unique_ptr<Disk> disk = open_spec(path + ",format=raw");
  TestClient client(*disk->backend);
  const u64 sectors = disk->backend->size_bytes() / kSectorBytes;
  const std::vector<u8> choices = pattern(3000, 5);
  for (u64 i = 0; i + 5 < choices.size(); i += 5) {
    const u64 first = (choices[i] * u64{256} + choices[i + 1]) % sectors;
    const u64 count = 1 + std::min<u64>(choices[i + 2], sectors - first - 1);
    const u64 offset = first * kSectorBytes;
    if (choices[i + 3] % 2 == 0) {
      client.write(offset, std::vector<u8>(count * kSectorBytes, choices[i + 4] | 1));
    } else {
      client.zero(BlockOp::discard, offset, count * kSectorBytes);
    }
  }
  const std::vector<ContentRun> runs =
      disk->backend->map_content(0, disk->backend->size_bytes(), kEverything).value();
  u64 at = 0;
  u64 zeros = 0;
  for (const ContentRun& run : runs) {
    if (run.content == Content::zero) {
      zeros += run.length_bytes;
      EXPECT_EQ(client.read(at, run.length_bytes), std::vector<u8>(run.length_bytes, 0)) << at;
    }
    at += run.length_bytes;
  }
  EXPECT_EQ(at, disk->backend->size_bytes());
  EXPECT_GT(zeros, 0u);
}

}  // namespace
}  // namespace blockdev::test
