// IoRing: the IoEngine on io_uring.
//
// The ring is made disabled, restricted to the four operations used here, and then enabled:
// whoever takes over this thread cannot make it open files or sockets through the ring. The fifth,
// truncate, is a plain call: rings have it since Linux 6.9, and it is rare.
//
// What the page cache can take or give at once never goes through the ring (try_now()): on tmpfs
// and for buffered writes the kernel would hand it to a worker thread, which costs more than the
// copy.
//
// Invariant: at most kDepth operations are with the kernel or prepared for it, so neither queue of
// the ring can overflow; the others wait in waiting_, in order.
// Invariant: a slot, and the iovec list in it, belongs to the kernel from its SQE to its CQE.

#pragma once

#include <liburing.h>

#include <deque>
#include <vector>

#include "blockdev/io_engine.h"
#include "blockdev/io_transfer.h"
#include "vmm/base/fd.h"

namespace blockdev {

class IoRing final : public IoEngine {
 public:
  static Result<std::unique_ptr<IoRing>> create();
  ~IoRing() override;

  std::optional<int> try_now(const IoOperation& operation) override;
  void submit(const IoOperation& operation) override;
  void kick() override;
  void reap(std::vector<IoCompletion>& completions) override;
  void wait() override;
  int completion_fd() const override { return done_event_.fd().get(); }
  u32 in_flight_count() const override { return in_flight_; }

 private:
  static constexpr u32 kDepth = 64;

  explicit IoRing(base::EventFd done_event) : done_event_(std::move(done_event)) {}
  Result<void> start();
  void queue_slot(u32 slot);
  void prepare(u32 slot);
  bool is_in_memory(int fd);

  base::EventFd done_event_;
  io_uring ring_{};
  bool is_started_ = false;
  std::vector<IoTransfer> slots_;
  std::vector<u32> free_slots_;
  std::deque<u32> waiting_;         // slots that found the ring full
  std::vector<IoCompletion> done_;  // without the ring, not reported yet
  // What a descriptor's number once stood for. When the number is used again this may be wrong:
  // that costs speed only.
  enum class Medium : u8 { unknown, memory, device };
  std::vector<Medium> mediums_;
  u32 with_kernel_ = 0;
  u32 in_flight_ = 0;
};

}  // namespace blockdev
