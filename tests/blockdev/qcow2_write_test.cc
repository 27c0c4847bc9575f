// What a qcow2 image that is written needs beyond reads and writes: growth of its tables, clusters
// that were compressed, damage, and how often the host is asked to make something durable.

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "blockdev/disk.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/test_client.h"
#include "tests/blockdev/support/test_engines.h"

namespace blockdev::test {
namespace {

struct Image {
  explicit Image(const std::string& size, const std::string& options = "") {
    run_ok("qemu-img create -q -f qcow2 " + options + " " + path() + " " + size);
  }
  Image() = default;
  std::string path() const { return dir.path("disk"); }

  Result<std::unique_ptr<Disk>> try_open(const std::string& more = "") {
    DiskOptions options;
    options.executor = executor;
    options.make_engine = hooked_engines(make_sync_engine, [this](const IoOperation& operation) {
      if (operation.kind == IoKind::sync) ++syncs;
    });
    return open_disk(parse_disk_spec(path() + ",format=qcow2,mode=persist" + more).value(),
                     options);
  }
  void open(const std::string& more = "") {
    disk = try_open(more).value();
    client = std::make_unique<TestClient>(*disk->backend);
  }
  void close() {
    client.reset();
    EXPECT_TRUE(disk->durable->close());
    disk.reset();
  }
  u64 incompatible_features() const { return read_file(path())[79]; }

  TempDir dir{"/dev/shm"};  // no syncs of a shared device
  std::shared_ptr<ManualExecutor> executor = std::make_shared<ManualExecutor>();
  std::atomic<u64> syncs = 0;
  std::unique_ptr<Disk> disk;
  std::unique_ptr<TestClient> client;
};

class CompressedRewrite : public testing::TestWithParam<std::string> {};

TEST_P(CompressedRewrite, FreesWhatTheClusterTook) {
  SKIP_WITHOUT_QEMU_TOOLS();
  Image image;
  std::vector<u8> content(4 * base::kMiB);
  for (u64 i = 0; i < content.size(); ++i) content[i] = static_cast<u8>(i / 1000 % 7);
  write_file(image.dir.path("content"), content);
  run_ok("qemu-img convert -c -O qcow2 " + GetParam() + " " + image.dir.path("content") + " " +
         image.path());
  image.open();
  EXPECT_EQ(image.client->read(0, content.size()), content);
  for (u64 at = 512; at + 70000 < content.size(); at += 300 * 1024) {
    const std::vector<u8> data = pattern(69632, at);
    ASSERT_EQ(image.client->write(at, data), BlockStatus::ok);
    std::ranges::copy(data, content.begin() + static_cast<std::ptrdiff_t>(at));
    if (at % 4 == 0) {
      ASSERT_EQ(image.client->flush(), BlockStatus::ok);
    }
  }
  ASSERT_EQ(image.client->zero(BlockOp::write_zeroes, 100 * 1024, 1000 * 1024), BlockStatus::ok);
  std::fill_n(content.begin() + 100 * 1024, 1000 * 1024, u8{0});
  EXPECT_EQ(image.client->read(0, content.size()), content);
  image.close();
  run_ok("qemu-img check -q " + image.path());
  write_file(image.dir.path("content"), content);
  run_ok("qemu-img compare -q -f qcow2 -F raw " + image.path() + " " + image.dir.path("content"));
}

INSTANTIATE_TEST_SUITE_P(Formats, CompressedRewrite,
                         testing::Values("", "-o compression_type=zstd", "-o cluster_size=512",
                                         "-o cluster_size=2M", "-o extended_l2=on",
                                         "-o compat=0.10"));

class GrowthOfDisk : public testing::TestWithParam<std::string> {};

TEST_P(GrowthOfDisk, KeepsWhatIsThereAndAddsZeros) {
  SKIP_WITHOUT_QEMU_TOOLS();
  Image image("3M", "-o " + GetParam());
  image.open();
  const std::vector<u8> data = pattern(65536, 1);
  ASSERT_EQ(image.client->write(3 * base::kMiB - 65536, data), BlockStatus::ok);
  for (const u64 size : {5 * base::kMiB + 512, 40 * base::kMiB, 900 * base::kMiB}) {
    image.client.reset();
    ASSERT_TRUE(image.disk->durable->resize(size));
    image.client = std::make_unique<TestClient>(*image.disk->backend);
    EXPECT_EQ(image.disk->backend->size_bytes(), size);
    EXPECT_EQ(image.client->read(3 * base::kMiB - 65536, 65536), data);
    EXPECT_EQ(image.client->read(size - 65536, 65536), std::vector<u8>(65536));
    ASSERT_EQ(image.client->write(size - 512, std::span(data).first(512)), BlockStatus::ok);
  }
  image.close();
  run_ok("qemu-img check -q " + image.path());
  EXPECT_NE(run_ok("qemu-img info " + image.path()).find("900 MiB"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Formats, GrowthOfDisk,
                         testing::Values("cluster_size=512", "cluster_size=64k",
                                         "cluster_size=128k,extended_l2=on",
                                         "cluster_size=512,refcount_bits=64"));

TEST(GrowthOfDisk, ShowsNothingOfALongerLayerBelow) {
  SKIP_WITHOUT_QEMU_TOOLS();
  Image image;
  write_file(image.dir.path("base"), pattern(base::kMiB, 1));
  run_ok("qemu-img create -q -f qcow2 -b " + image.dir.path("base") + " -F raw " + image.path() +
         " 100k");
  image.open(",backing=" + image.dir.path("base") + ":raw");
  image.client.reset();
  ASSERT_TRUE(image.disk->durable->resize(2 * base::kMiB));
  image.client = std::make_unique<TestClient>(*image.disk->backend);
  EXPECT_EQ(image.client->read(100 * 1024, 2 * base::kMiB - 100 * 1024),
            std::vector<u8>(2 * base::kMiB - 100 * 1024));
  image.close();
  run_ok("qemu-img check -q " + image.path());
}

// The refcount table of 512 bytes covers 2 MiB: it moves more than once, also between flushes.
TEST(GrowthOfTables, RefcountTableMovesWhileTheDiskIsWritten) {
  SKIP_WITHOUT_QEMU_TOOLS();
  Image image("24M", "-o cluster_size=512,refcount_bits=64");
  image.open();
  const std::vector<u8> data = pattern(512 * 1024, 1);
  for (u64 at = 0; at < 20 * base::kMiB; at += data.size()) {
    ASSERT_EQ(image.client->write(at, data), BlockStatus::ok);
    if (at % (3 * base::kMiB) == 0) {
      ASSERT_EQ(image.client->flush(), BlockStatus::ok);
    }
  }
  EXPECT_EQ(image.client->read(7 * data.size(), data.size()), data);
  image.close();
  run_ok("qemu-img check -q " + image.path());
}

TEST(Barriers, AreTwoForWhatWasAllocatedAndOneForWhatWasNot) {
  SKIP_WITHOUT_QEMU_TOOLS();
  Image image("64M");
  image.open();
  const std::vector<u8> data = pattern(4096, 1);
  const auto syncs_of_flush = [&] {
    const u64 before = image.syncs;
    EXPECT_EQ(image.client->flush(), BlockStatus::ok);
    return image.syncs - before;
  };
  EXPECT_EQ(syncs_of_flush(), 1u) << "nothing was written";
  ASSERT_EQ(image.client->write(0, data), BlockStatus::ok);
  EXPECT_EQ(syncs_of_flush(), 2u) << "a table and a cluster";
  ASSERT_EQ(image.client->write(1024, std::span(data).first(512)), BlockStatus::ok);
  EXPECT_EQ(syncs_of_flush(), 1u) << "written in place";
  ASSERT_EQ(image.client->zero(BlockOp::discard, 0, 65536), BlockStatus::ok);
  EXPECT_EQ(syncs_of_flush(), 2u) << "an entry";
  image.close();
}

// A new refcount block takes a third barrier: it is made and linked before it is needed.
TEST(Barriers, AreTwoWhenTheImageGrowsIntoANewRefcountBlock) {
  SKIP_WITHOUT_QEMU_TOOLS();
  Image image("1G", "-o refcount_bits=64");
  image.open();
  const std::vector<u8> data = pattern(4096, 1);
  for (u64 i = 0; i < 10'000; ++i) {  // a block is for 8,192 clusters
    ASSERT_EQ(image.client->write(i * 65536, data), BlockStatus::ok);
    if (i % 250 != 0) continue;
    const u64 before = image.syncs;
    ASSERT_EQ(image.client->flush(), BlockStatus::ok);
    ASSERT_LE(image.syncs - before, 2u) << "cluster " << i;
    while (image.executor->run_one()) {
    }
  }
  image.close();
  run_ok("qemu-img check -q " + image.path());
}

TEST(Refused, IsWhatCannotBeWrittenSafelyWithTheRemedy) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const auto refusal = [](Image& image, const std::string& more = "") {
    const auto opened = image.try_open(more);
    return opened ? std::string("opened") : opened.error().message() + opened.error().hint();
  };
  Image dirty("1M");
  poke_be64(dirty.path(), 72, 1);
  EXPECT_NE(refusal(dirty).find("check -r all"), std::string::npos);
  Image corrupt("1M");
  poke_be64(corrupt.path(), 72, 2);
  EXPECT_NE(refusal(corrupt).find("marked corrupt"), std::string::npos);
  Image snapshots("1M");
  run_ok("qemu-img snapshot -c one " + snapshots.path());
  EXPECT_NE(refusal(snapshots).find("internal snapshots"), std::string::npos);
  Image old;
  run_ok("qemu-img create -q -f raw " + old.dir.path("base") + " 1M");
  run_ok("qemu-img create -q -f qcow2 -o compat=0.10 -b " + old.dir.path("base") + " -F raw " +
         old.path());
  EXPECT_NE(refusal(old, ",backing=" + old.dir.path("base") + ":raw").find("version 2"),
            std::string::npos);
}

// Where things lie in a fresh image of qemu-img with clusters of 64 KiB.
constexpr u64 kRefcountBlock = 0x20000;
constexpr u64 kL1 = 0x30000;

struct Damage {
  std::string name;
  // Of an image with data in its first two clusters (at 0x50000 and 0x60000, L2 table at 0x40000).
  std::function<void(const std::string& path)> damage;
  u64 write_at;
};

void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }

class Damaged : public testing::TestWithParam<Damage> {};

TEST_P(Damaged, ImageIsMarkedAndNotDamagedFurther) {
  SKIP_WITHOUT_QEMU_TOOLS();
  Image image("16M");
  run_ok("qemu-io -f qcow2 -c 'write -P 1 0 128k' " + image.path());
  GetParam().damage(image.path());
  const std::vector<u8> before = read_file(image.path());
  image.open();
  const std::vector<u8> data = pattern(4096, 1);
  EXPECT_EQ(image.client->write(GetParam().write_at, data), BlockStatus::io_error);
  EXPECT_EQ(image.client->write(8 * base::kMiB, data), BlockStatus::io_error) << "any write";
  EXPECT_EQ(image.client->flush(), BlockStatus::io_error);
  image.client.reset();
  EXPECT_TRUE(image.disk->durable->close());
  image.disk.reset();
  EXPECT_EQ(image.incompatible_features(), 2u) << "marked corrupt";
  std::vector<u8> after = read_file(image.path());
  after[79] = before[79];
  EXPECT_EQ(after, before) << "nothing else was written";
  EXPECT_FALSE(image.try_open());
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, Damaged,
    testing::Values(
        Damage{"EntryPointsToTheHeader",
               [](const std::string& path) { poke_be64(path, 0x40000, 0x8000000000000200); }, 0},
        Damage{"EntryPointsToTheL1Table",
               [](const std::string& path) { poke_be64(path, 0x40000, 0x8000000000000000 | kL1); },
               0},
        Damage{"EntryWithReservedBits",
               [](const std::string& path) { poke_be64(path, 0x40000, 0xbfffffffffff0000); }, 0},
        Damage{"EntryOutsideTheFile",
               [](const std::string& path) { poke_be64(path, 0x40000, 0x8000000100000000); }, 0},
        Damage{"EntryWithoutCopied",
               [](const std::string& path) { poke_be64(path, 0x40000, 0x50000); }, 65536},
        Damage{"RefcountOfDataIsZero",
               [](const std::string& path) {
                 const u8 zero[2] = {};
                 poke_file(path, kRefcountBlock + 5 * 2, zero);
               },
               0},
        Damage{"RefcountOfDataIsTwo",
               [](const std::string& path) {
                 const u8 two[2] = {0, 2};
                 poke_file(path, kRefcountBlock + 5 * 2, two);
               },
               0}),
    [](const auto& instance) { return instance.param.name; });

// All refcounts are gone: the allocator would hand out the tables.
TEST(Damaged, TablesAreNotAllocatedOver) {
  SKIP_WITHOUT_QEMU_TOOLS();
  Image image("16M");
  poke_file(image.path(), kRefcountBlock, std::vector<u8>(65536));
  image.open();
  EXPECT_EQ(image.client->write(0, pattern(4096, 1)), BlockStatus::io_error);
  image.client.reset();
  image.disk.reset();
  EXPECT_EQ(image.incompatible_features(), 2u);
}

TEST(Autoclear, BitsAreClearedBeforeTheFirstWrite) {
  SKIP_WITHOUT_QEMU_TOOLS();
  Image image("16M");
  run_ok("qemu-img bitmap --add " + image.path() + " b");
  poke_be64(image.path(), 88, 0x8001);
  image.open();
  ASSERT_EQ(image.client->write(0, pattern(4096, 1)), BlockStatus::ok);
  image.close();
  const std::vector<u8> header = read_file(image.path());
  EXPECT_EQ(header[94], 0);
  EXPECT_EQ(header[95], 0);
}

// A guest that never flushes loses at most what it wrote in the last seconds.
TEST(BackgroundFlush, ComesWhenTheGuestDoesNotAsk) {
  SKIP_WITHOUT_QEMU_TOOLS();
  Image image("16M");
  const auto executor = std::make_shared<ManualExecutor>();
  DiskOptions options;
  options.executor = executor;
  const auto disk =
      open_disk(parse_disk_spec(image.path() + ",format=qcow2,mode=persist").value(), options)
          .value();
  TestClient client(*disk->backend);
  const std::vector<u8> data = pattern(65536, 1);
  ASSERT_EQ(client.write(0, data), BlockStatus::ok);
  executor->run_delayed();
  while (executor->run_one()) {
  }
  run_ok("cp " + image.path() + " " + image.dir.path("copy"));
  run_ok("qemu-img check -q " + image.dir.path("copy"));
  write_file(image.dir.path("data"), data);
  run_ok("qemu-img convert -O raw " + image.dir.path("copy") + " " + image.dir.path("raw"));
  std::vector<u8> found = read_file(image.dir.path("raw"));
  found.resize(data.size());
  EXPECT_EQ(found, data);
}

}  // namespace
}  // namespace blockdev::test
