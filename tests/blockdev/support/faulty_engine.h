// FaultyEngine: an engine whose N-th operation fails.
//
// Thread: FaultPlan any; FaultyEngine as IoEngine.

#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "blockdev/io_engine.h"
#include "vmm/base/fd.h"

namespace blockdev::test {

enum class FaultExtent : u8 {
  nothing,  // the operation does not happen
  half,     // its first half happens: a short transfer that could not be continued
};
enum class FaultDuration : u8 { once, from_then_on };

class FaultPlan final {
 public:
  // The `index`-th operation from now (0: the next) that is not a read, or any if `with_reads`.
  struct Fault {
    u64 index = 0;
    int error_number = 0;
    FaultExtent extent = FaultExtent::nothing;
    FaultDuration duration = FaultDuration::once;
    bool with_reads = false;
  };
  // REQUIRES: no engine is in use meanwhile.
  void arm(const Fault& fault);
  void disarm() { is_armed_ = false; }
  u64 seen_count() const { return count_; }
  bool has_struck() const { return has_struck_; }

  // Whether this operation fails.
  bool strikes(const IoOperation& operation);
  const Fault& fault() const { return fault_; }

 private:
  Fault fault_;
  std::atomic<bool> is_armed_{false};
  std::atomic<bool> has_struck_{false};
  std::atomic<u64> count_{0};
};

class FaultyEngine final : public IoEngine {
 public:
  static Result<std::unique_ptr<FaultyEngine>> create(std::unique_ptr<IoEngine> inner,
                                                      FaultPlan& plan);

  void submit(const IoOperation& operation) override;
  void kick() override { inner_->kick(); }
  void reap(std::vector<IoCompletion>& completions) override;
  void wait() override;
  int completion_fd() const override { return both_.get(); }
  u32 in_flight_count() const override {
    return inner_->in_flight_count() + static_cast<u32>(failed_.size());
  }

 private:
  FaultyEngine(std::unique_ptr<IoEngine> inner, FaultPlan& plan, base::EventFd event, base::Fd both)
      : inner_(std::move(inner)), plan_(plan), event_(std::move(event)), both_(std::move(both)) {}

  std::unique_ptr<IoEngine> inner_;
  FaultPlan& plan_;
  base::EventFd event_;  // readable while failed_ has something
  base::Fd both_;        // an epoll of `event_` and the inner engine
  std::vector<IoCompletion> failed_;
};

// Engines of `inner` that share one plan. `plan` must outlive them.
EngineMaker faulty_engines(EngineMaker inner, FaultPlan& plan);

}  // namespace blockdev::test
