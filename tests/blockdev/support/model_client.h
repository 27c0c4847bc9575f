// ModelClient: submits requests to one queue and holds every answer against a SectorHistory.
//
// Any number of requests may be in flight; a read is judged when it ends. What breaks the promise
// is collected as text, so that a test can ask for violations as well as for their absence.
//
// Thread: one.

#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "blockdev/block_backend.h"
#include "tests/blockdev/support/sector_history.h"

namespace blockdev::test {

class ModelClient final : public BlockClient {
 public:
  ModelClient(BlockBackend& backend, SectorHistory& history, Timeline& timeline);
  ~ModelClient() override;  // drains

  struct Request {
    BlockOp op = BlockOp::read;
    Unmap unmap = Unmap::no;
    u64 first_sector = 0;
    u64 sector_count = 0;
  };

  // Submits and returns; the stamps of a write are `stamp`, `stamp` + 1, ...
  void start(const Request& request, Stamp stamp = 0);
  // Submits and waits for all that is in flight. Returns how the request ended.
  BlockStatus run(const Request& request, Stamp stamp = 0);
  void poll() { queue_->poll(); }
  void drain() { queue_->drain(); }
  u32 in_flight_count() const { return static_cast<u32>(slots_.size() - free_.size()); }
  BlockQueue& queue() { return *queue_; }

  // What a discard promises: boundaries inward to this are sure to read as zeros, the rest may.
  void set_discard_granularity(u64 bytes) { granularity_ = bytes; }
  // Requests that failed are no violation, but their sectors are uncertain.
  u64 failed_count() const { return failed_; }
  const std::vector<std::string>& violations() const { return violations_; }
  // The sectors of the last run() of a read.
  std::span<const u8> last_bytes() const { return last_bytes_; }

  void on_done(BlockRequest& request, BlockStatus status) override;

 private:
  struct Slot {
    BlockRequest request;
    std::vector<u8> bytes;
    std::vector<iovec> buffers;
    u64 submitted = 0;
    u32 change = 0;
    bool is_busy = false;
  };

  Slot& take_slot();
  void note_changes(Slot& slot, const Request& request, Stamp stamp);
  void cut_buffers(Slot& slot);
  void judge_read(const Slot& slot, u64 done);

  SectorHistory& history_;
  Timeline& timeline_;
  std::unique_ptr<BlockQueue> queue_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<Slot*> free_;
  std::vector<std::string> violations_;
  std::vector<u8> last_bytes_;
  BlockStatus last_status_ = BlockStatus::ok;
  u64 granularity_ = 0;
  u64 failed_ = 0;
  std::mt19937_64 random_{7};
};

}  // namespace blockdev::test
