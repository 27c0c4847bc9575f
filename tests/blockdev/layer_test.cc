#include "blockdev/layer.h"

#include <gtest/gtest.h>

#include "blockdev/disk.h"
#include "vmm/base/check.h"

namespace blockdev::test {
namespace {

// Says `kind` for runs of `run_bytes`, and counts the bytes it had to look through.
class CountingLayer final : public Layer {
 public:
  CountingLayer(ExtentKind kind, u64 run_bytes) : kind_(kind), run_bytes_(run_bytes) {}
  u64 size_bytes() const override { return 64 * base::kMiB; }
  Result<Extent> map(u64 offset, u64 length) const override {
    const u64 run = std::min(length, run_bytes_ - offset % run_bytes_);
    looked_at += run;
    return Extent{.kind = kind_, .length_bytes = run};
  }
  Result<void> read_computed(u64, u64, IovecCursor&, ReadScratch&) const override { CHECK(false); }

  mutable u64 looked_at = 0;

 private:
  const ExtentKind kind_;
  const u64 run_bytes_;
};

// A layer that has nothing, above one in small pieces: its run is looked through once and not for
// every piece.
TEST(Lookup, LooksThroughARunOfBelowOnce) {
  const auto top = std::make_shared<CountingLayer>(ExtentKind::below, 32 * base::kMiB);
  const auto middle = std::make_shared<CountingLayer>(ExtentKind::below, 64 * base::kKiB);
  const auto bottom = std::make_shared<CountingLayer>(ExtentKind::zero, 512);
  const LayerList layers = {top, middle, bottom};
  constexpr u64 kLength = 8 * base::kMiB;
  Lookup lookup(layers);
  for (u64 at = 1024; at < kLength;) {
    const LocatedExtent found = lookup.at(at, kLength - at).value();
    ASSERT_EQ(found.layer, bottom.get());
    ASSERT_EQ(found.extent.length_bytes, 512u);
    at += found.extent.length_bytes;
  }
  EXPECT_EQ(top->looked_at, kLength - 1024);
  EXPECT_EQ(middle->looked_at, kLength - 1024);
  EXPECT_EQ(bottom->looked_at, kLength - 1024);
}

TEST(Overlay, StackOfTooManyLayersIsRefused) {
  const auto bottom = std::make_shared<CountingLayer>(ExtentKind::zero, 512);
  const auto overlay = Overlay::create({bottom}, {}).value();
  for (u64 count = 1; count < kMaxLayerCount; ++count) ASSERT_TRUE(overlay->seal()) << count;
  const Result<SealedPointer> one_more = overlay->seal();
  ASSERT_FALSE(one_more);
  EXPECT_EQ(one_more.error().kind(), ErrorKind::unsupported);
  EXPECT_EQ(overlay->lower().size(), kMaxLayerCount) << "nothing has changed";
  EXPECT_FALSE(Overlay::create(LayerList(kMaxLayerCount + 1, bottom), {}));
}

}  // namespace
}  // namespace blockdev::test
