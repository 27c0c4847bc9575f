#include "blockdev/flush_gate.h"

#include <gtest/gtest.h>
#include <poll.h>

#include "tests/support/mock_disk.h"

namespace blockdev {
namespace {

struct Client final : BlockClient {
  void on_done(BlockRequest&, BlockStatus status) override { ended.push_back(status); }
  std::vector<BlockStatus> ended;
};

class FlushGateTest : public ::testing::Test {
 protected:
  FlushGateTest() {
    auto disk = std::make_unique<test::MockDisk>(1 << 20);
    disk_ = disk.get();
    gate_ = std::make_unique<FlushGate>(std::move(disk));
    queue_ = gate_->open_queue().value();
    flush_.op = BlockOp::flush;
    flush_.client = &client_;
  }
  bool is_readable() const {
    pollfd entry{.fd = queue_->completion_fd(), .events = POLLIN, .revents = 0};
    return ::poll(&entry, 1, 0) == 1;
  }

  test::MockDisk* disk_;
  std::unique_ptr<FlushGate> gate_;
  std::unique_ptr<BlockQueue> queue_;
  Client client_;
  BlockRequest flush_;
};

TEST_F(FlushGateTest, OpenGatePassesFlushes) {
  queue_->submit(flush_);
  queue_->poll();
  EXPECT_EQ(client_.ended, std::vector{BlockStatus::ok});
  EXPECT_EQ(disk_->flushes, 1);
}

TEST_F(FlushGateTest, ClosedGateHoldsFlushesAndNothingElse) {
  gate_->hold();
  queue_->submit(flush_);
  std::vector<u8> bytes(512);
  const iovec buffer{bytes.data(), bytes.size()};
  BlockRequest write;
  write.op = BlockOp::write;
  write.length_bytes = bytes.size();
  write.buffers = {&buffer, 1};
  write.client = &client_;
  queue_->submit(write);
  queue_->poll();
  EXPECT_EQ(client_.ended, std::vector{BlockStatus::ok});
  EXPECT_EQ(disk_->flushes, 0);
  EXPECT_EQ(queue_->in_flight_count(), 1u);
  EXPECT_FALSE(is_readable());
  gate_->release();
  EXPECT_TRUE(is_readable()) << "who waits for completions is woken";
  queue_->poll();
  EXPECT_EQ(disk_->flushes, 1);
  EXPECT_EQ(client_.ended.size(), 2u);
  EXPECT_FALSE(is_readable());
}

TEST_F(FlushGateTest, EveryReasonHasToGo) {
  gate_->hold();
  gate_->hold();
  queue_->submit(flush_);
  gate_->release();
  queue_->poll();
  EXPECT_EQ(disk_->flushes, 0);
  gate_->release();
  queue_->poll();
  queue_->poll();
  EXPECT_EQ(disk_->flushes, 1);
}

TEST_F(FlushGateTest, DrainDoesNotWaitForTheGate) {
  gate_->hold();
  queue_->submit(flush_);
  queue_->drain();
  EXPECT_EQ(client_.ended, std::vector{BlockStatus::not_begun});
  EXPECT_EQ(queue_->in_flight_count(), 0u);
  gate_->release();
  queue_->poll();
  EXPECT_FALSE(is_readable());
  queue_->submit(flush_);
  queue_->drain();
  EXPECT_EQ(client_.ended.back(), BlockStatus::ok);
}

TEST_F(FlushGateTest, WhatWasWaitedForHasFailedSoFlushesFailUntilItIsDone) {
  gate_->hold();
  queue_->submit(flush_);
  gate_->fail(BlockStatus::no_space);
  gate_->release();
  queue_->poll();
  EXPECT_EQ(client_.ended, std::vector{BlockStatus::no_space});
  gate_->fail(BlockStatus::ok);
  queue_->submit(flush_);
  queue_->drain();
  EXPECT_EQ(client_.ended.back(), BlockStatus::ok);
  EXPECT_EQ(disk_->flushes, 1);
}

}  // namespace
}  // namespace blockdev
