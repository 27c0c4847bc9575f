// Engines for tests: plain system calls, and a liar.

#pragma once

#include "blockdev/sync_engine.h"

namespace blockdev::test {

inline Result<std::unique_ptr<IoEngine>> make_sync_engine() {
  return std::unique_ptr<IoEngine>(TRY(SyncEngine::create()));
}

// Says that it has synced, and has not.
class SyncDropper final : public IoEngine {
 public:
  explicit SyncDropper(std::unique_ptr<IoEngine> inner) : inner_(std::move(inner)) {}

  void submit(const IoOperation& operation) override {
    IoOperation other = operation;
    if (other.kind == IoKind::sync) {
      other.kind = IoKind::read;  // of nothing
      other.buffers = {};
    }
    inner_->submit(other);
  }
  void kick() override { inner_->kick(); }
  void reap(std::vector<IoCompletion>& completions) override { inner_->reap(completions); }
  void wait() override { inner_->wait(); }
  int completion_fd() const override { return inner_->completion_fd(); }
  u32 in_flight_count() const override { return inner_->in_flight_count(); }

 private:
  std::unique_ptr<IoEngine> inner_;
};

inline EngineMaker dropping_syncs(EngineMaker inner) {
  return [inner = std::move(inner)]() -> Result<std::unique_ptr<IoEngine>> {
    return std::unique_ptr<IoEngine>(std::make_unique<SyncDropper>(TRY(inner())));
  };
}

}  // namespace blockdev::test
