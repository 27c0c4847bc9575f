// TestClient: submits one request at a time and waits for it.

#pragma once

#include <gtest/gtest.h>

#include <span>
#include <vector>

#include "blockdev/block_backend.h"

namespace blockdev::test {

class TestClient final : public BlockClient {
 public:
  explicit TestClient(BlockBackend& backend) : queue_(backend.open_queue().value()) {}

  BlockStatus write(u64 offset, std::span<const u8> data) {
    return run(BlockOp::write, offset, data.size(), const_cast<u8*>(data.data()));
  }
  BlockStatus read(u64 offset, std::span<u8> data) {
    return run(BlockOp::read, offset, data.size(), data.data());
  }
  std::vector<u8> read(u64 offset, u64 length) {
    std::vector<u8> data(length, 0xee);
    EXPECT_EQ(read(offset, data), BlockStatus::ok) << "read at " << offset;
    return data;
  }
  BlockStatus zero(BlockOp op, u64 offset, u64 length) { return run(op, offset, length, nullptr); }
  BlockStatus flush() { return run(BlockOp::flush, 0, 0, nullptr); }
  BlockQueue& queue() { return *queue_; }

  void on_done(BlockRequest&, BlockStatus status) override {
    status_ = status;
    ++done_count_;
  }

 private:
  BlockStatus run(BlockOp op, u64 offset, u64 length, u8* data) {
    // Odd pieces, so that no code can rely on buffers of sectors.
    std::vector<iovec> buffers;
    for (u64 at = 0; data != nullptr && at < length;) {
      const u64 piece = std::min<u64>(length - at, 300 + at % 7000);
      buffers.push_back({data + at, piece});
      at += piece;
    }
    BlockRequest request;
    request.op = op;
    request.offset_bytes = offset;
    request.length_bytes = length;
    request.buffers = buffers;
    request.client = this;
    const u64 before = done_count_;
    queue_->submit(request);
    queue_->drain();
    EXPECT_EQ(done_count_, before + 1) << "each request is done exactly once";
    return status_;
  }

  std::unique_ptr<BlockQueue> queue_;
  BlockStatus status_ = BlockStatus::ok;
  u64 done_count_ = 0;
};

inline std::vector<u8> pattern(u64 size, u64 seed) {
  std::vector<u8> bytes(size);
  u64 state = seed * 0x9e3779b97f4a7c15 + 1;
  for (u8& byte : bytes) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    byte = static_cast<u8>(state);
  }
  return bytes;
}

}  // namespace blockdev::test
