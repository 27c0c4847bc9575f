#include "blockdev/executor.h"

#include <utility>

namespace blockdev {

void ManualExecutor::post(Task task) {
  base::MutexLock lock(mutex_);
  tasks_.push_back(std::move(task));
}

void ManualExecutor::post_after(std::chrono::milliseconds, Task task) {
  base::MutexLock lock(mutex_);
  delayed_.push_back(std::move(task));
}

bool ManualExecutor::run_one() {
  Task task;
  {
    base::MutexLock lock(mutex_);
    if (tasks_.empty()) return false;
    task = std::move(tasks_.front());
    tasks_.pop_front();
  }
  task();
  return true;
}

void ManualExecutor::run_delayed() {
  base::MutexLock lock(mutex_);
  for (Task& task : delayed_) tasks_.push_back(std::move(task));
  delayed_.clear();
}

ThreadExecutor::~ThreadExecutor() {
  {
    base::MutexLock lock(mutex_);
    is_ending_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void ThreadExecutor::post(Task task) {
  base::MutexLock lock(mutex_);
  tasks_.push_back(std::move(task));
  start();
}

void ThreadExecutor::post_after(std::chrono::milliseconds delay, Task task) {
  base::MutexLock lock(mutex_);
  delayed_.emplace(Clock::now() + delay, std::move(task));
  start();
}

void ThreadExecutor::start() {
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  changed_.notify_all();
}

void ThreadExecutor::run() {
  Task task;
  while (take_task(task)) {
    task();
    task = nullptr;  // what it holds goes now, not with the next one
  }
}

bool ThreadExecutor::take_task(Task& task) {
  base::MutexLock lock(mutex_);
  while (true) {
    const bool is_due = !delayed_.empty() && delayed_.begin()->first <= Clock::now();
    if (is_due) {
      tasks_.push_back(std::move(delayed_.begin()->second));
      delayed_.erase(delayed_.begin());
      continue;
    }
    if (!tasks_.empty()) {
      task = std::move(tasks_.front());
      tasks_.pop_front();
      return true;
    }
    if (is_ending_) return false;
    if (delayed_.empty()) {
      changed_.wait(mutex_);
    } else {
      changed_.wait_until(mutex_, delayed_.begin()->first);
    }
  }
}

}  // namespace blockdev
