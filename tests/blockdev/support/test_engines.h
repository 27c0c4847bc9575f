// Engines for tests: plain system calls, hooks, and a liar.

#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "blockdev/sync_engine.h"

namespace blockdev::test {

inline Result<std::unique_ptr<IoEngine>> make_sync_engine() {
  return std::unique_ptr<IoEngine>(TRY(SyncEngine::create()));
}

// Shows each operation to a hook, which may change it, before it is done.
class HookedEngine final : public IoEngine {
 public:
  using Hook = std::function<void(IoOperation&)>;
  HookedEngine(std::unique_ptr<IoEngine> inner, Hook hook)
      : inner_(std::move(inner)), hook_(std::move(hook)) {}

  void submit(const IoOperation& operation) override {
    IoOperation other = operation;
    hook_(other);
    inner_->submit(other);
  }
  void kick() override { inner_->kick(); }
  void reap(std::vector<IoCompletion>& completions) override { inner_->reap(completions); }
  void wait() override { inner_->wait(); }
  int completion_fd() const override { return inner_->completion_fd(); }
  u32 in_flight_count() const override { return inner_->in_flight_count(); }

 private:
  std::unique_ptr<IoEngine> inner_;
  Hook hook_;
};

inline EngineMaker hooked_engines(EngineMaker inner, HookedEngine::Hook hook) {
  return [inner = std::move(inner), hook = std::move(hook)]() -> Result<std::unique_ptr<IoEngine>> {
    return std::unique_ptr<IoEngine>(std::make_unique<HookedEngine>(TRY(inner()), hook));
  };
}

// These say that they have synced, and have not.
inline EngineMaker dropping_syncs(EngineMaker inner) {
  return hooked_engines(std::move(inner), [](IoOperation& operation) {
    if (operation.kind != IoKind::sync) return;
    operation.kind = IoKind::read;  // of nothing
    operation.buffers = {};
  });
}

}  // namespace blockdev::test
