#include "blockdev/disk_queue.h"

#include <gtest/gtest.h>

#include <deque>

#include "blockdev/disk.h"
#include "blockdev/overlay_layer.h"
#include "blockdev/raw_image.h"
#include "blockdev/sync_engine.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/test_client.h"

namespace blockdev::test {
namespace {

// Holds what is submitted until reap(), and then does one operation at a time.
class SlowEngine final : public IoEngine {
 public:
  void submit(const IoOperation& operation) override {
    held_.push_back({operation, {operation.buffers.begin(), operation.buffers.end()}});
    most_in_flight = std::max(most_in_flight, in_flight_count());
    ++submitted;
  }
  void kick() override {}
  void reap(std::vector<IoCompletion>& completions) override {
    if (held_.empty()) return;
    Held held = std::move(held_.front());
    held_.pop_front();
    held.operation.buffers = held.buffers;
    const bool fails = submitted - in_flight_count() == fail_at;
    completions.push_back({held.operation.tag, fails ? EIO : run_now(held.operation)});
  }
  void wait() override { ASSERT_FALSE(held_.empty()); }
  int completion_fd() const override { return -1; }
  u32 in_flight_count() const override { return static_cast<u32>(held_.size()); }

  u32 most_in_flight = 0;
  u32 submitted = 0;
  u32 fail_at = 0;  // the operation, counted from 1, that fails

 private:
  struct Held {
    IoOperation operation;
    std::vector<iovec> buffers;
  };
  std::deque<Held> held_;
};

struct QueueRig final : BlockClient {
  explicit QueueRig(u64 disk_bytes) {
    content = pattern(disk_bytes, 1);
    write_file(dir.path("base.raw"), content);
    stack.size_bytes = disk_bytes;
    stack.lower = {RawImage::create(base::open_file(dir.path("base.raw"), 0).value()).value()};
    ArenaOptions options;
    options.memory_limit_bytes = 64 * base::kMiB;
    active = OverlayLayer::create(disk_bytes, options, std::make_shared<Janitor>()).value();
    stack.active = active.get();
  }
  // Every other sector from `offset` on is written.
  void write_every_other_sector(u64 offset, u64 length) {
    for (u64 at = offset; at < offset + length; at += 1024) {
      std::vector<u8> sector = pattern(512, at);
      const iovec buffer{sector.data(), sector.size()};
      IovecCursor from({&buffer, 1});
      ASSERT_EQ(active->write(at, 512, from), BlockStatus::ok);
      std::ranges::copy(sector, content.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }
  void on_done(BlockRequest&, BlockStatus status) override { statuses.push_back(status); }

  TempDir dir;
  std::vector<u8> content;
  std::shared_ptr<OverlayLayer> active;
  DiskStack stack;
  std::vector<BlockStatus> statuses;
};

struct ReadRequest {
  ReadRequest(BlockClient& client, u64 offset, u64 length) : bytes(length, 0xee) {
    buffer = {bytes.data(), bytes.size()};
    request.offset_bytes = offset;
    request.length_bytes = length;
    request.buffers = {&buffer, 1};
    request.client = &client;
  }
  std::vector<u8> bytes;
  iovec buffer{};
  BlockRequest request;
};

constexpr u64 kLength = base::kMiB;
constexpr u32 kMostPieces = 128;

TEST(DiskQueue, ReadInThousandsOfPiecesHasFewInFlight) {
  QueueRig rig(9 * kLength);
  rig.write_every_other_sector(0, 4 * kLength);
  auto owned = std::make_unique<SlowEngine>();
  SlowEngine& engine = *owned;
  DiskQueue queue(rig.stack, std::move(owned));
  // Several at once, the last of them without a single piece in the way.
  std::deque<ReadRequest> reads;
  for (u64 i = 0; i < 4; ++i) reads.emplace_back(rig, i * kLength, kLength);
  reads.emplace_back(rig, 8 * kLength, kLength);
  for (ReadRequest& read : reads) queue.submit(read.request);
  EXPECT_EQ(queue.in_flight_count(), 5u);
  queue.drain();
  EXPECT_LE(engine.most_in_flight, kMostPieces);
  EXPECT_EQ(engine.submitted, 4 * kLength / 1024 + 1) << "and none was read twice";
  EXPECT_EQ(rig.statuses, std::vector<BlockStatus>(5, BlockStatus::ok));
  for (const ReadRequest& read : reads) {
    const auto first = rig.content.begin() + static_cast<std::ptrdiff_t>(read.request.offset_bytes);
    EXPECT_TRUE(std::equal(read.bytes.begin(), read.bytes.end(), first));
  }
}

TEST(DiskQueue, FailedPieceEndsItsReadOnce) {
  for (const u32 fail_at : {1u, 70u, 200u, 1024u}) {
    QueueRig rig(2 * kLength);
    rig.write_every_other_sector(0, kLength);
    auto engine = std::make_unique<SlowEngine>();
    engine->fail_at = fail_at;
    DiskQueue queue(rig.stack, std::move(engine));
    ReadRequest bad(rig, 0, kLength);
    ReadRequest good(rig, kLength, kLength);
    queue.submit(bad.request);
    queue.submit(good.request);
    queue.drain();
    EXPECT_EQ(std::ranges::count(rig.statuses, BlockStatus::io_error), 1) << fail_at;
    EXPECT_EQ(std::ranges::count(rig.statuses, BlockStatus::ok), 1) << fail_at;
  }
}

}  // namespace
}  // namespace blockdev::test
