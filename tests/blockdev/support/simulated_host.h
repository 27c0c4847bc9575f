// SimulatedHost: engines, executor and clients of a disk on one thread, in an order that a seed or
// a test chooses.
//
// An operation given to an engine waits until the host performs it, on the real file, then; a write
// may be performed in two halves. Where the disk's code waits for an engine, the host goes on with
// everybody else meanwhile: with other operations, the executor's next task, the other clients. So
// every interleaving of queue threads, executor and device that matters is a sequence of choices,
// and a seed that fails fails again.
//
// Thread: one.

#pragma once

#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "blockdev/executor.h"
#include "blockdev/io_engine.h"
#include "vmm/base/fd.h"

namespace blockdev::test {

class SimulatedHost final {
 public:
  explicit SimulatedHost(u64 seed);
  ~SimulatedHost();

  EngineMaker engines();
  std::shared_ptr<Executor> executor();

  // Who does a step of its own when it is its turn; not while a step of the same one is waiting.
  // True: it did something.
  void add_actor(std::function<bool()> step) { actors_.push_back({std::move(step), false}); }

  // Operations that `held` is true of are not performed until released.
  using Held = std::function<bool(const IoOperation&)>;
  void hold(Held held) { held_ = std::move(held); }
  // The same for those that wait now.
  void hold_waiting();
  void release();

  // The next time that somebody waits for a read that `which` is true of: does `meanwhile` before
  // the read is performed. That must not wait for what the reader has locked, nor release().
  void interrupt_read(Held which, std::function<void()> meanwhile) {
    interruption_ = {std::move(which), std::move(meanwhile)};
  }

  // One choice. False: nothing could be done.
  bool step();
  // Steps until `done`. False: it did not come about within a great many steps.
  bool run_until(const std::function<bool()>& done);
  // Performs what can be performed, runs the executor and lets actors go on until all is quiet.
  void settle();

  u64 waiting_count() const { return waiting_.size(); }
  // Of those that wait, the ones that are held.
  u64 held_count() const;

 private:
  class Engine;
  class TaskRunner;
  struct Waiting {
    Engine* engine;
    IoOperation operation;  // its buffers are in `buffers`
    std::vector<iovec> buffers;
    int error_number = 0;
    bool is_held = false;  // by hold_waiting()
  };
  struct Actor {
    std::function<bool()> step;
    bool is_busy;
  };

  struct Interruption {
    Held which;
    std::function<void()> meanwhile;
  };

  void wait_for(Engine& engine);
  bool is_held(const Waiting& waiting) const {
    return waiting.is_held || (held_ && held_(waiting.operation));
  }
  void perform(std::list<Waiting>::iterator chosen);
  bool perform_one();
  bool perform_half(Waiting& waiting);
  bool run_task();
  bool run_actor();

  std::mt19937_64 random_;
  std::list<Waiting> waiting_;
  std::shared_ptr<TaskRunner> tasks_;
  std::vector<Actor> actors_;
  Held held_;
  Interruption interruption_;
  u32 engine_count_ = 0;
};

}  // namespace blockdev::test
