#include "blockdev/overlay.h"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/stat.h>

#include <filesystem>
#include <random>
#include <thread>

#include "blockdev/disk.h"
#include "blockdev/layer_writer.h"
#include "blockdev/spill_file.h"
#include "tests/blockdev/support/model_disk.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/test_client.h"
#include "vmm/base/ranges.h"

namespace blockdev::test {
namespace {

constexpr u64 kDiskBytes = 9 * base::kMiB + 5 * 512;  // ends in the middle of a block and a chunk

OverlayOptions small_options(const TempDir& dir) {
  // Most of what the tests write goes to the spill file.
  return {.memory_limit_bytes = 512 * base::kKiB, .keep_bytes = 0, .spill_directory = dir.root()};
}

std::unique_ptr<Disk> raw_disk(const TempDir& dir, const OverlayOptions& options) {
  write_file(dir.path("base.raw"), pattern(kDiskBytes, 42));
  return open_disk(parse_disk_spec(dir.path("base.raw") + ",format=raw").value(),
                   {.overlay = options})
      .value();
}

// A range within [from, to), often at block and chunk boundaries.
ByteRange random_range(std::mt19937_64& random, u64 from, u64 to) {
  const u64 sectors = (to - from) / 512;
  u64 first = random() % sectors;
  if (random() % 3 == 0) first = std::min(sectors - 1, first / 4096 * 4096);
  const u64 limit = random() % 8 == 0 ? 6000 : 40;
  const u64 count = std::min(sectors - first, 1 + random() % limit);
  return {from + first * 512, count * 512};
}

void random_operation(std::mt19937_64& random, TestClient& client, ModelDisk& model, u64 from,
                      u64 to) {
  const ByteRange range = random_range(random, from, to);
  switch (random() % 4) {
    case 0:
    case 1: {
      const std::vector<u8> data = pattern(range.length, random());
      EXPECT_EQ(client.write(range.offset, data), BlockStatus::ok);
      model.write(range.offset, data);
      break;
    }
    case 2: {
      const BlockOp op = random() % 2 == 0 ? BlockOp::discard : BlockOp::write_zeroes;
      EXPECT_EQ(client.zero(op, range.offset, range.length), BlockStatus::ok);
      model.zero(range.offset, range.length);
      break;
    }
    default: {
      const auto first = model.bytes.begin() + static_cast<std::ptrdiff_t>(range.offset);
      const std::vector<u8> expected(first, first + static_cast<std::ptrdiff_t>(range.length));
      ASSERT_EQ(client.read(range.offset, range.length), expected) << range.offset;
    }
  }
}

TEST(Overlay, BehavesAsTheModelThroughSealDiscardAndRebase) {
  const TempDir dir;
  const std::unique_ptr<Disk> disk = raw_disk(dir, small_options(dir));
  TestClient client(*disk->backend);
  Overlay& overlay = *disk->overlay;
  std::mt19937_64 random(1);
  ModelDisk model{pattern(kDiskBytes, 42)};
  struct Mark {
    LayerList lower;
    ModelDisk model;
  };
  std::vector<Mark> marks = {{overlay.lower(), model}};
  for (int round = 0; round < 40; ++round) {
    for (int i = 0; i < 60; ++i) random_operation(random, client, model, 0, kDiskBytes);
    if (HasFatalFailure()) return;
    switch (random() % 4) {
      case 0:
      case 1:
        ASSERT_TRUE(overlay.seal());
        marks.push_back({overlay.lower(), model});
        break;
      case 2: {
        const u64 written = overlay.active_block_count();
        EXPECT_EQ(overlay.discard().block_count, written);
        EXPECT_EQ(overlay.active_block_count(), 0u);
        // The newest mark whose layers these are.
        for (const Mark& mark : marks) {
          if (mark.lower == overlay.lower()) model = mark.model;
        }
        break;
      }
      default: {
        const Mark& mark = marks[random() % marks.size()];
        overlay.rebase_on(mark.lower);
        model = mark.model;
      }
    }
    ASSERT_EQ(client.read(0, kDiskBytes), model.bytes) << "round " << round;
  }
}

TEST(Overlay, QueuesInThreadsKeepToTheModel) {
  const TempDir dir;
  const std::unique_ptr<Disk> disk = raw_disk(dir, small_options(dir));
  constexpr int kThreads = 4;
  std::vector<ModelDisk> models(kThreads, ModelDisk{pattern(kDiskBytes, 42)});
  const u64 share = kDiskBytes / kThreads / 512 * 512;  // borders within one block
  const auto run_round = [&](u64 seed) {
    std::vector<std::thread> threads;
    for (u64 t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        TestClient client(*disk->backend);
        std::mt19937_64 random(seed + t);
        for (int i = 0; i < 100; ++i) {
          random_operation(random, client, models[t], t * share, (t + 1) * share);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  };
  const std::vector<ModelDisk> fresh = models;
  run_round(10);
  ASSERT_TRUE(disk->overlay->seal());
  const std::vector<ModelDisk> sealed = models;
  run_round(20);
  disk->overlay->discard();
  models = sealed;
  run_round(30);
  TestClient client(*disk->backend);
  for (u64 t = 0; t < kThreads; ++t) {
    const auto first = models[t].bytes.begin() + static_cast<std::ptrdiff_t>(t * share);
    EXPECT_EQ(client.read(t * share, share),
              std::vector<u8>(first, first + static_cast<std::ptrdiff_t>(share)));
  }
}

TEST(Overlay, WritesToOneSectorLeaveOneOfThem) {
  const TempDir dir;
  const std::unique_ptr<Disk> disk = raw_disk(dir, {});
  std::vector<std::thread> threads;
  for (u8 t = 1; t <= 4; ++t) {
    threads.emplace_back([&, t] {
      TestClient client(*disk->backend);
      const std::vector<u8> data(16 * 512, t);
      for (int i = 0; i < 500; ++i) {
        client.write(4096 - 512, data);
        const std::vector<u8> seen = client.read(4096, 512);
        EXPECT_EQ(std::count(seen.begin(), seen.end(), seen[0]), 512);
        if (t == 4) client.zero(BlockOp::discard, 4096, 4096);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Overlay, NoFileToSpillToIsAnErrorAndKeepsTheRest) {
  const TempDir dir;
  const std::unique_ptr<Disk> disk = raw_disk(
      dir,
      {.memory_limit_bytes = 8 * 4096, .keep_bytes = 0, .spill_directory = dir.path("missing")});
  TestClient client(*disk->backend);
  const std::vector<u8> data = pattern(8 * 4096, 5);
  EXPECT_EQ(client.write(0, data), BlockStatus::ok);
  EXPECT_EQ(client.write(base::kMiB, data), BlockStatus::io_error)
      << "no_space would wait for room that nobody can make";
  EXPECT_EQ(client.read(0, data.size()), data);
  EXPECT_EQ(client.write(0, pattern(8 * 4096, 6)), BlockStatus::ok) << "overwriting needs no room";
  EXPECT_EQ(client.zero(BlockOp::discard, 0, 4096), BlockStatus::ok);
  EXPECT_EQ(client.write(2 * base::kMiB, std::span(data).first(4096)), BlockStatus::ok)
      << "discarded room is used again";
  disk->overlay->discard();
  EXPECT_EQ(client.write(base::kMiB, data), BlockStatus::ok);
}

TEST(Overlay, SpillsWhereFilesCannotBeMadeWithoutAName) {
  const TempDir dir;
  const base::Fd fd = open_unlinked_file(dir.root()).value();
  ASSERT_TRUE(base::write_exactly(fd, pattern(4096, 1), 4096));
  struct stat status {};
  ASSERT_EQ(::fstat(fd.get(), &status), 0);
  EXPECT_EQ(status.st_nlink, 0u);
  EXPECT_TRUE(std::filesystem::is_empty(dir.root()));
  EXPECT_FALSE(open_spill_file(dir.path("missing")));
}

TEST(Overlay, DiscardingTheWholeDiskTakesNoRoom) {
  const TempDir dir;
  const std::unique_ptr<Disk> disk = raw_disk(dir, small_options(dir));
  TestClient client(*disk->backend);
  client.write(4096, pattern(3 * base::kMiB, 9));
  EXPECT_EQ(client.zero(BlockOp::discard, 0, kDiskBytes), BlockStatus::ok);
  EXPECT_EQ(client.read(0, kDiskBytes), std::vector<u8>(kDiskBytes, 0));
  EXPECT_EQ(disk->overlay->active_block_count(), base::divide_up(kDiskBytes, 4096));
}

TEST(Overlay, ReadOnlyDiskRefusesWrites) {
  const TempDir dir;
  write_file(dir.path("a.raw"), pattern(4096, 1));
  const auto disk =
      open_disk(parse_disk_spec(dir.path("a.raw") + ",format=raw,mode=ro").value(), {}).value();
  TestClient client(*disk->backend);
  EXPECT_TRUE(disk->backend->is_read_only());
  EXPECT_EQ(client.write(0, pattern(512, 2)), BlockStatus::read_only);
  EXPECT_EQ(client.zero(BlockOp::discard, 0, 512), BlockStatus::read_only);
  EXPECT_EQ(client.flush(), BlockStatus::ok);
  EXPECT_EQ(client.read(0, 4096), pattern(4096, 1));
}

// --- layer files -----------------------------------------------------------------------------

Result<LayerFile> write_to(const std::string& path, const OverlayLayer& sealed,
                           const LayerList& below, const BackingName& backing) {
  const base::Fd fd = base::open_file(path, O_RDWR | O_CREAT | O_TRUNC, 0644).value();
  return write_layer(sealed, below, backing, fd);
}

TEST(LayerWriter, LayersAreCleanForQemuAndReadBackInANewDisk) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::unique_ptr<Disk> disk = raw_disk(dir, small_options(dir));
  TestClient client(*disk->backend);
  std::mt19937_64 random(3);
  ModelDisk model{pattern(kDiskBytes, 42)};
  BackingName below_name{"base.raw", ImageFormat::raw};
  std::vector<std::string> paths;
  std::vector<SealedPointer> sealed_layers;
  for (int level = 0; level < 3; ++level) {
    for (int i = 0; i < 50; ++i) random_operation(random, client, model, 0, kDiskBytes);
    const LayerList below = disk->overlay->lower();
    const SealedPointer sealed = disk->overlay->seal().value();
    const std::string name = fmt::format("layer{}.qcow2", level);
    const Result<LayerFile> file = write_to(dir.path(name), *sealed, below, below_name);
    ASSERT_TRUE(file) << file.error().message();
    EXPECT_EQ(file->file_bytes, read_file(dir.path(name)).size());
    run_ok("qemu-img check -q -f qcow2 " + dir.path(name));
    run_ok("qemu-img convert -U -f qcow2 -O raw " + dir.path(name) + " " + dir.path("out.raw"));
    ASSERT_EQ(read_file(dir.path("out.raw")), model.bytes) << name;
    paths.push_back(dir.path(name));
    sealed_layers.push_back(sealed);
    below_name = {name, ImageFormat::qcow2};
  }
  // In the running overlay, the files take the sealed layers' place.
  for (u64 i = 0; i < paths.size(); ++i) {
    EXPECT_TRUE(
        disk->overlay->replace_with(sealed_layers[i], open_layer_file(paths[i]).value().layer));
    EXPECT_EQ(client.read(0, kDiskBytes), model.bytes);
  }
  EXPECT_FALSE(disk->overlay->replace_with(sealed_layers[0], disk->overlay->lower().front()));
  // A new process.
  const DiskSpec spec = parse_disk_spec(dir.path("base.raw") + ",format=raw").value();
  const auto restored = open_disk_with_layers(spec, paths, {}).value();
  TestClient other(*restored->backend);
  EXPECT_EQ(other.read(0, kDiskBytes), model.bytes);
  EXPECT_EQ(restored->images.size(), 4u);
}

TEST(LayerWriter, EmptyLayerIsAnImageWithNothingInIt) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::unique_ptr<Disk> disk = raw_disk(dir, small_options(dir));
  const LayerList below = disk->overlay->lower();
  const SealedPointer sealed = disk->overlay->seal().value();
  ASSERT_TRUE(write_to(dir.path("e.qcow2"), *sealed, below, {"base.raw", ImageFormat::raw}));
  run_ok("qemu-img check -q -f qcow2 " + dir.path("e.qcow2"));
  run_ok(fmt::format("qemu-img compare -q -U -f qcow2 -F raw {} {}", dir.path("e.qcow2"),
                     dir.path("base.raw")));
}

// Tab, a C1 control character, one that changes the direction of text, no UTF-8, and too long.
TEST(LayerWriter, NameThatNoReaderTakesIsRefused) {
  const TempDir dir;
  const std::unique_ptr<Disk> disk = raw_disk(dir, small_options(dir));
  const LayerList below = disk->overlay->lower();
  const SealedPointer sealed = disk->overlay->seal().value();
  for (const std::string& name :
       {std::string("a\tb"), std::string("a\xc2\x85"), std::string("a\xe2\x80\x8e"),
        std::string("\xff"), std::string(1024, 'a')}) {
    EXPECT_FALSE(write_to(dir.path("l.qcow2"), *sealed, below, {name, ImageFormat::raw})) << name;
  }
  const std::string longest(1023, 'a');
  ASSERT_TRUE(write_to(dir.path("l.qcow2"), *sealed, below, {longest, ImageFormat::raw}));
  EXPECT_TRUE(open_layer_file(dir.path("l.qcow2")));
}

TEST(LayerWriter, FullDeviceIsAnError) {
  const TempDir dir;
  const std::unique_ptr<Disk> disk = raw_disk(dir, small_options(dir));
  TestClient client(*disk->backend);
  client.write(0, pattern(4096, 1));
  const LayerList below = disk->overlay->lower();
  const SealedPointer sealed = disk->overlay->seal().value();
  const base::Fd full = base::open_file("/dev/full", O_RDWR).value();
  const Result<LayerFile> file = write_layer(*sealed, below, {"base.raw", ImageFormat::raw}, full);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().kind(), ErrorKind::no_space);
}

}  // namespace
}  // namespace blockdev::test
