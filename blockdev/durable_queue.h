// DurableQueue: one thread's door to a durable disk.
//
// Reads are DiskReader's. A write goes to the image's begin_write() from front to back, and each
// answer becomes a step: an operation with the engine, or, where something new is allocated, reads
// of what lies around the data, one write of all of it, and the image's end_write().
//
// What must wait is parked, as the place where it goes on: for another request that has the same
// cluster, or because enough steps are with the engine. Flushes are the Flusher's. It and other
// queues answer from their threads; the completion descriptor watches both them and the engine.
//
// drain() waits for requests of this queue alone. A write that waits for one of another queue, on
// the same thread, needs that queue polled.
//
// Invariant: a write is finished exactly once, when it is handed out and its last step is done.
// Thread: as BlockQueue.

#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "blockdev/block_backend.h"
#include "blockdev/disk_reader.h"
#include "blockdev/flusher.h"
#include "blockdev/io_engine.h"
#include "blockdev/iovec_cursor.h"
#include "blockdev/write_fill.h"
#include "vmm/base/fd.h"

namespace blockdev {

// What the queues of a durable disk read. Changes only while all of them are drained.
struct DurableStack {
  DiskStack layers;  // lower.front() is `top`
  std::shared_ptr<WritableImage> top;
};

class DurableQueue final : public BlockQueue {
 public:
  // All must outlive the queue.
  static Result<std::unique_ptr<DurableQueue>> create(const DurableStack& stack, Flusher& flusher,
                                                      Executor& executor,
                                                      std::unique_ptr<IoEngine> engine);
  ~DurableQueue() override;

  void submit(BlockRequest& request) override;
  void poll() override;
  int completion_fd() const override { return either_.get(); }
  u32 in_flight_count() const override { return deliveries_.in_flight_count(); }
  void drain() override;

 private:
  // Twice the ring's depth, so that it stays full while completions are taken.
  static constexpr u32 kMaxSteps = 128;
  static constexpr u64 kMaxFillBytes = 8 * base::kMiB;
  static constexpr u64 kStepTag = DiskReader::kTagLimit;

  struct Write {
    BlockRequest* request = nullptr;
    WriteKind kind = WriteKind::data;
    ByteRange left;        // not handed out yet
    IovecCursor from{{}};  // where the first byte of `left` comes from
    u32 steps = 0;
    bool is_parked = false;
    BlockStatus status = BlockStatus::ok;

    bool is_handed_out() const { return left.length == 0 || status != BlockStatus::ok; }
  };
  struct Step {
    u32 write = 0;
    WriteStep plan;
    WriteTicket ticket;
    ByteRange range;       // of the request
    IovecCursor from{{}};  // data
    WriteFill fill;
    u32 fill_reads = 0;  // with the engine
    u64 fill_bytes = 0;  // counted in fill_bytes_
    int error_number = 0;
  };

  class Mailbox;

  DurableQueue(const DurableStack& stack, Flusher& flusher, Executor& executor,
               std::unique_ptr<IoEngine> engine, std::shared_ptr<Mailbox> mailbox, base::Fd either);

  u32 take_write(BlockRequest& request);
  u32 take_step(u32 write);
  // Goes on with a write until it is handed out or parked.
  void hand_out(u32 index);
  // False: it must wait.
  bool hand_out_some(u32 index);
  void carry_out(u32 step);
  void write_in_place(u32 step);
  void begin_fill(u32 step);
  void write_filled(u32 step);
  void punch(u32 step);
  void take_zeros(u64 length);
  void run(u32 step, const IoOperation& operation);
  void complete(const IoCompletion& completion);
  void end_operation(u32 step, int error_number);
  void end_step(u32 step);
  void finish_if_done(u32 index);
  void retry_parked();
  void take_mail();
  BlockStatus status_of(int error_number, u64 offset);

  const DurableStack& stack_;
  Flusher& flusher_;
  Executor& executor_;
  const std::unique_ptr<IoEngine> engine_;
  const std::shared_ptr<Mailbox> mailbox_;
  const base::Fd either_;  // an epoll of both
  Deliveries deliveries_;
  DiskReader reader_;
  std::vector<Write> writes_;
  std::vector<u32> free_writes_;
  std::deque<Step> steps_;  // tickets stay in place
  std::vector<u32> free_steps_;
  std::vector<u32> parked_;
  std::vector<u32> retried_;
  u32 steps_in_use_ = 0;
  u64 fill_bytes_ = 0;
  bool has_submitted_ = false;  // to the engine, without a kick
  bool is_retry_due_ = false;
  bool is_engine_used_ = false;  // ever
  std::vector<iovec> slice_;
  std::vector<WriteFill::FileRead> reads_;
  std::vector<IoCompletion> completions_;
  ReadScratch scratch_;
  base::RateLimit log_limit_{10};
};

}  // namespace blockdev
