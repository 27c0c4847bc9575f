// SyncEngine: the IoEngine that does each operation when it is submitted, with plain system calls.
// For tests, and for hosts where io_uring is not available.

#pragma once

#include "blockdev/io_engine.h"
#include "blockdev/io_transfer.h"
#include "vmm/base/fd.h"

namespace blockdev {

class SyncEngine final : public IoEngine {
 public:
  static Result<std::unique_ptr<SyncEngine>> create();

  void submit(const IoOperation& operation) override;
  void kick() override {}
  void reap(std::vector<IoCompletion>& completions) override;
  void wait() override {}
  int completion_fd() const override { return done_event_.fd().get(); }
  u32 in_flight_count() const override { return static_cast<u32>(done_.size()); }

 private:
  explicit SyncEngine(base::EventFd done_event) : done_event_(std::move(done_event)) {}

  base::EventFd done_event_;
  std::vector<IoCompletion> done_;
};

// The whole operation, or what is left of one, on this thread. Returns 0 or an errno; each step
// moves at least a byte or is the last, but for EINTR.
int run_now(const IoOperation& operation);
int finish_now(IoTransfer& transfer);

}  // namespace blockdev
