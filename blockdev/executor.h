// Executor: where an image does what no request waits for on its own thread: the phases of a flush.
//
// In production each durable disk has a ThreadExecutor. A ManualExecutor has no thread: whoever
// waits for something (BlockQueue::drain(), DurableDisk::flush()) runs its tasks, so that one
// thread does everything in an order that a test chooses, and a tool needs no second thread.
//
// Invariant: tasks run one at a time, each after the post() of those before it.
// Thread: all calls from any thread.

#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <thread>

#include "vmm/base/mutex.h"
#include "vmm/base/types.h"

namespace blockdev {

class Executor {
 public:
  using Task = std::function<void()>;

  virtual ~Executor() = default;
  virtual void post(Task task) = 0;
  // Not before `delay` has passed; dropped when the executor goes first.
  virtual void post_after(std::chrono::milliseconds delay, Task task) = 0;
  // Runs one task on this thread. False: there is none, or the executor has a thread of its own.
  virtual bool run_one() = 0;
};

class ManualExecutor final : public Executor {
 public:
  void post(Task task) override;
  // Kept until run_delayed(): time is the test's.
  void post_after(std::chrono::milliseconds delay, Task task) override;
  bool run_one() override;
  // Posts all that waits for its time.
  void run_delayed();

 private:
  base::Mutex mutex_;
  std::deque<Task> tasks_ GUARDED_BY(mutex_);
  std::deque<Task> delayed_ GUARDED_BY(mutex_);
};

// The thread starts with the first task.
class ThreadExecutor final : public Executor {
 public:
  // Runs what was posted and waits for it.
  ~ThreadExecutor() override;

  void post(Task task) override;
  void post_after(std::chrono::milliseconds delay, Task task) override;
  bool run_one() override { return false; }

 private:
  using Clock = std::chrono::steady_clock;

  void start() REQUIRES_LOCK(mutex_);
  void run();
  bool take_task(Task& task);

  base::Mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<Task> tasks_ GUARDED_BY(mutex_);
  std::multimap<Clock::time_point, Task> delayed_ GUARDED_BY(mutex_);
  bool is_ending_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace blockdev
