#include "tests/blockdev/support/simulated_host.h"

#include <algorithm>
#include <utility>

#include "blockdev/sync_engine.h"
#include "vmm/base/check.h"

namespace blockdev::test {

class SimulatedHost::Engine final : public IoEngine {
 public:
  Engine(SimulatedHost& host, base::EventFd event) : host_(host), event_(std::move(event)) {
    ++host_.engine_count_;
  }
  ~Engine() override {
    CHECK(in_flight_ == 0);
    --host_.engine_count_;
  }

  void submit(const IoOperation& operation) override {
    ++in_flight_;
    Waiting waiting{.engine = this,
                    .operation = operation,
                    .buffers = {operation.buffers.begin(), operation.buffers.end()}};
    host_.waiting_.push_back(std::move(waiting));
    host_.waiting_.back().operation.buffers = host_.waiting_.back().buffers;
  }
  void kick() override {}
  void reap(std::vector<IoCompletion>& completions) override {
    event_.take();
    in_flight_ -= static_cast<u32>(done_.size());
    completions.insert(completions.end(), done_.begin(), done_.end());
    done_.clear();
  }
  void wait() override { host_.wait_for(*this); }
  int completion_fd() const override { return event_.fd().get(); }
  u32 in_flight_count() const override { return in_flight_; }

  void complete(u64 tag, int error_number) {
    done_.push_back({tag, error_number});
    event_.signal();
  }
  bool has_done() const { return !done_.empty(); }

 private:
  SimulatedHost& host_;
  base::EventFd event_;
  std::vector<IoCompletion> done_;
  u32 in_flight_ = 0;
};

class SimulatedHost::TaskRunner final : public Executor {
 public:
  void post(Task task) override { tasks_.push_back(std::move(task)); }
  // Time does not pass here.
  void post_after(std::chrono::milliseconds, Task) override {}
  bool run_one() override {
    if (is_running_ || tasks_.empty()) return false;
    const Task task = std::move(tasks_.front());
    tasks_.pop_front();
    is_running_ = true;
    task();
    is_running_ = false;
    return true;
  }
  bool can_run() const { return !is_running_ && !tasks_.empty(); }

 private:
  std::deque<Task> tasks_;
  bool is_running_ = false;
};

SimulatedHost::SimulatedHost(u64 seed) : random_(seed), tasks_(std::make_shared<TaskRunner>()) {}

SimulatedHost::~SimulatedHost() { CHECK(engine_count_ == 0); }

EngineMaker SimulatedHost::engines() {
  return [this]() -> Result<std::unique_ptr<IoEngine>> {
    return std::unique_ptr<IoEngine>(std::make_unique<Engine>(*this, TRY(base::EventFd::create())));
  };
}

std::shared_ptr<Executor> SimulatedHost::executor() { return tasks_; }

void SimulatedHost::hold_waiting() {
  for (Waiting& waiting : waiting_) waiting.is_held = true;
}

void SimulatedHost::release() {
  held_ = nullptr;
  for (Waiting& waiting : waiting_) waiting.is_held = false;
}

u64 SimulatedHost::held_count() const {
  return static_cast<u64>(
      std::ranges::count_if(waiting_, [&](const Waiting& waiting) { return is_held(waiting); }));
}

void SimulatedHost::wait_for(Engine& engine) {
  // Who reads tables waits with other threads waiting for him, which one thread cannot play: his
  // operations are performed at once, held or not.
  const auto is_read = [&](const Waiting& waiting) {
    return waiting.engine == &engine && waiting.operation.kind == IoKind::read;
  };
  if (!engine.has_done()) {
    const auto read = std::ranges::find_if(waiting_, is_read);
    if (read != waiting_.end()) {
      if (interruption_.which && interruption_.which(read->operation)) {
        read->is_held = true;
        std::exchange(interruption_, {}).meanwhile();
      }
      perform(read);
    }
  }
  for (u64 steps = 0; !engine.has_done(); ++steps) {
    // The test holds back what this one waits for, or it waits for nothing.
    CHECK(steps < 1'000'000);
    step();
  }
}

void SimulatedHost::perform(std::list<Waiting>::iterator chosen) {
  const int error = run_now(chosen->operation);
  chosen->engine->complete(chosen->operation.tag,
                           chosen->error_number != 0 ? chosen->error_number : error);
  waiting_.erase(chosen);
}

bool SimulatedHost::perform_half(Waiting& waiting) {
  std::vector<iovec>& buffers = waiting.buffers;
  if (waiting.operation.kind != IoKind::write || random_() % 4 != 0) return false;
  if (buffers.empty() || buffers[0].iov_len < 1024) return false;
  const u64 length = buffers[0].iov_len / 1024 * 512;
  const iovec first{buffers[0].iov_base, length};
  IoOperation part = waiting.operation;
  part.buffers = {&first, 1};
  waiting.error_number = run_now(part);
  buffers[0].iov_base = static_cast<u8*>(buffers[0].iov_base) + length;
  buffers[0].iov_len -= length;
  waiting.operation.offset += length;
  return true;
}

bool SimulatedHost::perform_one() {
  std::vector<std::list<Waiting>::iterator> ready;
  for (auto it = waiting_.begin(); it != waiting_.end(); ++it) {
    if (!is_held(*it)) ready.push_back(it);
  }
  if (ready.empty()) return false;
  const auto chosen = ready[random_() % ready.size()];
  if (perform_half(*chosen)) return true;
  perform(chosen);
  return true;
}

bool SimulatedHost::run_task() { return tasks_->run_one(); }

bool SimulatedHost::run_actor() {
  if (actors_.empty()) return false;
  const u64 first = random_() % actors_.size();
  for (u64 i = 0; i < actors_.size(); ++i) {
    Actor& actor = actors_[(first + i) % actors_.size()];
    if (actor.is_busy) continue;
    actor.is_busy = true;
    const bool did = actor.step();
    actor.is_busy = false;
    if (did) return true;
  }
  return false;
}

bool SimulatedHost::step() {
  const u64 first = random_() % 3;
  for (u64 i = 0; i < 3; ++i) {
    switch ((first + i) % 3) {
      case 0:
        if (perform_one()) return true;
        break;
      case 1:
        if (run_task()) return true;
        break;
      default:
        if (run_actor()) return true;
    }
  }
  return false;
}

bool SimulatedHost::run_until(const std::function<bool()>& done) {
  u64 idle = 0;
  for (u64 steps = 0; steps < 10'000'000; ++steps) {
    if (done()) return true;
    idle = step() ? 0 : idle + 1;
    if (idle == 1000) return false;
  }
  return false;
}

void SimulatedHost::settle() {
  (void)run_until([] { return false; });
}

}  // namespace blockdev::test
