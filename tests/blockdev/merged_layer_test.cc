// A merged layer says of every byte what the walk through its layers says.

#include "blockdev/merged_layer.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev::test {
namespace {

constexpr u64 kBlock = 4096;
constexpr u64 kRegion = 64 * base::kKiB;

// One kind for each 4 KiB; counts how often it is asked.
class FakeLayer final : public Layer {
 public:
  FakeLayer(int fd, u64 size) : fd_(fd), size_(size), kinds_(base::divide_up(size, kBlock)) {
    for (u64 i = 0; i < kinds_.size(); ++i) kinds_[i] = ExtentKind::below;
  }
  void set(u64 first_block, u64 count, ExtentKind kind) {
    std::fill_n(kinds_.begin() + static_cast<std::ptrdiff_t>(first_block),
                std::min(count, kinds_.size() - first_block), kind);
  }
  void make_corrupt(u64 block) { corrupt_block_ = block; }

  u64 size_bytes() const override { return size_; }
  Result<Extent> map(u64 offset, u64 length) const override {
    asked.fetch_add(1, std::memory_order_relaxed);
    const u64 block = offset / kBlock;
    if (block == corrupt_block_) return make_error(ErrorKind::corrupt, "a bad place");
    u64 end = block + 1;
    while (end < kinds_.size() && end != corrupt_block_ && kinds_[end] == kinds_[block]) ++end;
    Extent extent{.kind = kinds_[block], .length_bytes = std::min(length, end * kBlock - offset)};
    if (extent.kind == ExtentKind::file) {
      extent.fd = fd_;
      extent.file_offset = offset + base::kMiB;
    }
    return extent;
  }
  Result<void> read_computed(u64 offset, u64 length, IovecCursor& to, ReadScratch&) const override {
    std::vector<u8> bytes(length);
    for (u64 i = 0; i < length; ++i) {
      bytes[i] = static_cast<u8>(static_cast<u64>(fd_) + (offset + i) / kBlock);
    }
    to.copy_in(bytes.data(), length);
    return {};
  }
  mutable std::atomic<u64> asked = 0;

 private:
  const int fd_;
  const u64 size_;
  std::vector<ExtentKind> kinds_;
  u64 corrupt_block_ = ~u64{0};
};

using FakeLayers = std::vector<std::shared_ptr<FakeLayer>>;

FakeLayers random_layers(std::mt19937_64& random) {
  constexpr ExtentKind kKinds[] = {ExtentKind::file, ExtentKind::zero, ExtentKind::computed,
                                   ExtentKind::below};
  FakeLayers layers;
  const u64 count = 2 + random() % 6;
  u64 size = 3 * base::kMiB + random() % 64 * 512;
  for (u64 depth = 0; depth < count; ++depth) {
    layers.push_back(std::make_shared<FakeLayer>(static_cast<int>(100 + depth), size));
    for (u64 run = 0; run < 30; ++run) {
      // Some runs are whole regions, others are not.
      const bool is_whole = random() % 2 == 0;
      const u64 unit = is_whole ? kRegion / kBlock : 1;
      const u64 blocks = base::divide_up(size, kBlock);
      const u64 first = random() % blocks / unit * unit;
      layers.back()->set(first, (1 + random() % 4) * unit, kKinds[random() % 4]);
    }
    if (random() % 4 == 0) size = size * 2 / 3 / 512 * 512;
    if (random() % 4 == 0) size += random() % 100 * 512;
  }
  return layers;
}

LayerList listed(const FakeLayers& layers) { return {layers.begin(), layers.end()}; }

void expect_same(const LayerList& layers, const Layer& merged, u64 offset, u64 length) {
  const Extent found = merged.map(offset, length).value();
  ASSERT_GT(found.length_bytes, 0u);
  ASSERT_LE(found.length_bytes, length);
  const u64 end = std::min(offset + found.length_bytes, merged.size_bytes());
  Lookup lookup(layers);
  for (u64 at = offset; at < end;) {
    const LocatedExtent truth = lookup.at(at, end - at).value();
    ASSERT_EQ(found.kind, truth.extent.kind) << at;
    if (found.kind == ExtentKind::file) {
      ASSERT_EQ(found.fd, truth.extent.fd) << at;
      ASSERT_EQ(found.file_offset + (at - offset), truth.extent.file_offset) << at;
    }
    at += truth.extent.length_bytes;
  }
  if (found.kind != ExtentKind::computed) return;
  std::vector<u8> ours(end - offset);
  std::vector<u8> truth(end - offset);
  const iovec to_ours{ours.data(), ours.size()};
  IovecCursor cursor({&to_ours, 1});
  ReadScratch scratch;
  ASSERT_TRUE(merged.read_computed(offset, ours.size(), cursor, scratch));
  ASSERT_TRUE(read_layers(layers, offset, truth, scratch));
  ASSERT_EQ(ours, truth);
}

TEST(MergedLayer, SaysWhatTheWalkSays) {
  for (u64 seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const FakeLayers layers = random_layers(random);
    const LayerPointer merged = MergedLayer::create(listed(layers)).value();
    for (u64 i = 0; i < 300; ++i) {
      const u64 offset = random() % (merged->size_bytes() / 512) * 512;
      const u64 length = std::min(512 * (1 + random() % 512), merged->size_bytes() - offset);
      expect_same(listed(layers), *merged, offset, length);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(MergedLayer, AsksTheLayersOnceAndThenNoMore) {
  FakeLayers layers;
  for (int depth = 0; depth < 64; ++depth) {
    layers.push_back(std::make_shared<FakeLayer>(depth, 64 * base::kMiB));
  }
  layers.back()->set(0, 64 * base::kMiB / kBlock, ExtentKind::file);
  const auto merged = MergedLayer::create(listed(layers)).value();
  const auto read_all = [&] {
    for (u64 at = 0; at < merged->size_bytes(); at += kBlock) {
      ASSERT_EQ(merged->map(at, kBlock).value().kind, ExtentKind::file);
    }
  };
  read_all();
  for (const auto& layer : layers) layer->asked = 0;
  read_all();
  for (const auto& layer : layers) EXPECT_EQ(layer->asked, 0u);
}

TEST(MergedLayer, RunsAreNotCutAtRegions) {
  FakeLayers layers = {std::make_shared<FakeLayer>(1, 8 * base::kMiB),
                       std::make_shared<FakeLayer>(2, 8 * base::kMiB)};
  layers[1]->set(0, 8 * base::kMiB / kBlock, ExtentKind::file);
  const auto merged = MergedLayer::create(listed(layers)).value();
  const Extent extent = merged->map(kBlock, 4 * base::kMiB).value();
  EXPECT_EQ(extent.length_bytes, 4 * base::kMiB);
  EXPECT_EQ(extent.file_offset, kBlock + base::kMiB);
}

TEST(MergedLayer, PlaceThatCannotBeReadSaysSoEachTimeAndHarmsNoOther) {
  FakeLayers layers = {std::make_shared<FakeLayer>(1, base::kMiB),
                       std::make_shared<FakeLayer>(2, base::kMiB)};
  layers[1]->set(0, base::kMiB / kBlock, ExtentKind::file);
  layers[0]->make_corrupt(20);
  const auto merged = MergedLayer::create(listed(layers)).value();
  for (int i = 0; i < 2; ++i) {
    const Result<Extent> bad = merged->map(20 * kBlock, kBlock);
    ASSERT_FALSE(bad);
    EXPECT_EQ(bad.error().kind(), ErrorKind::corrupt);
    EXPECT_EQ(merged->map(19 * kBlock, kBlock).value().kind, ExtentKind::file);
    EXPECT_EQ(merged->map(64 * kBlock, kBlock).value().kind, ExtentKind::file);
  }
}

TEST(MergedLayer, ThreadsFillTheIndexTogether) {
  std::mt19937_64 random(5);
  const FakeLayers layers = random_layers(random);
  const LayerList list = listed(layers);
  const LayerPointer merged = MergedLayer::create(list).value();
  std::vector<std::thread> threads;
  for (u64 thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937_64 mine(thread);
      for (u64 i = 0; i < 500; ++i) {
        const u64 offset = mine() % (merged->size_bytes() / 512) * 512;
        expect_same(list, *merged, offset, 512);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(MergedLayer, OneLayerStaysItself) {
  const LayerPointer only = std::make_shared<FakeLayer>(1, base::kMiB);
  EXPECT_EQ(merge_layers({only}).value(), LayerList{only});
}

}  // namespace
}  // namespace blockdev::test
