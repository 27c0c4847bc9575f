// MockDisk: a disk in memory that completes when the test says so and fails how the test says.
//
// Thread: all calls from any thread; what a queue has in flight belongs to its caller's lock.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "blockdev/block_backend.h"

namespace test {

enum class Completion : u8 {
  at_submit,  // on_done() comes before submit() returns
  at_poll,
  held,  // only by drain(), as if the host took its time
};

class MockDisk final : public blockdev::BlockBackend {
 public:
  explicit MockDisk(u64 size_bytes) : bytes(size_bytes) {}

  u64 size_bytes() const override { return bytes.size(); }
  bool is_read_only() const override { return read_only; }
  u32 discard_granularity_bytes() const override { return 4096; }
  Result<std::unique_ptr<blockdev::BlockQueue>> open_queue() override {
    return std::unique_ptr<blockdev::BlockQueue>(std::make_unique<Queue>(*this));
  }

  std::vector<u8> bytes;
  bool read_only = false;
  std::atomic<Completion> completion{Completion::at_poll};
  // What the next requests that are not reads end with.
  std::atomic<blockdev::BlockStatus> write_status{blockdev::BlockStatus::ok};
  std::atomic<int> flushes{0};
  std::atomic<int> discards{0};
  std::atomic<int> zeroes{0};
  std::atomic<int> unmaps{0};
  std::atomic<int> submitted{0};
  std::atomic<int> polls{0};
  std::atomic<u32> most_in_flight{0};
  std::function<void()> on_submit;  // inside submit(); set while nobody submits

 private:
  class Queue final : public blockdev::BlockQueue {
   public:
    explicit Queue(MockDisk& disk) : disk_(disk) {}

    void submit(blockdev::BlockRequest& request) override {
      ++disk_.submitted;
      if (disk_.on_submit) disk_.on_submit();
      pending_.push_back(&request);
      disk_.most_in_flight = std::max<u32>(disk_.most_in_flight, in_flight_count());
      if (disk_.completion == Completion::at_submit) finish_one();
    }
    void poll() override {
      ++disk_.polls;
      if (disk_.completion == Completion::held) return;
      for (u64 left = pending_.size(); left != 0 && !pending_.empty(); --left) finish_one();
    }
    int completion_fd() const override { return -1; }
    u32 in_flight_count() const override { return static_cast<u32>(pending_.size()); }
    void drain() override {
      while (!pending_.empty()) finish_one();
    }

   private:
    void finish_one() {
      blockdev::BlockRequest& request = *pending_.front();
      pending_.pop_front();
      request.client->on_done(request, disk_.perform(request));
    }

    MockDisk& disk_;
    std::deque<blockdev::BlockRequest*> pending_;
  };

  blockdev::BlockStatus perform(const blockdev::BlockRequest& request) {
    using blockdev::BlockOp;
    const std::lock_guard lock(mutex_);
    if (request.op != BlockOp::read && write_status != blockdev::BlockStatus::ok) {
      return write_status;
    }
    u8* at = bytes.data() + request.offset_bytes;
    switch (request.op) {
      case BlockOp::read:
        for (const iovec& piece : request.buffers) {
          std::memcpy(piece.iov_base, at, piece.iov_len);
          at += piece.iov_len;
        }
        break;
      case BlockOp::write:
        for (const iovec& piece : request.buffers) {
          std::memcpy(at, piece.iov_base, piece.iov_len);
          at += piece.iov_len;
        }
        break;
      case BlockOp::flush: ++flushes; break;
      case BlockOp::discard:
        ++discards;
        std::memset(at, 0, request.length_bytes);
        break;
      case BlockOp::write_zeroes:
        ++zeroes;
        if (request.unmap == blockdev::Unmap::yes) ++unmaps;
        std::memset(at, 0, request.length_bytes);
        break;
    }
    return blockdev::BlockStatus::ok;
  }

  std::mutex mutex_;
};

}  // namespace test
