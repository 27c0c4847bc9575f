#include "blockdev/janitor.h"

#include <system_error>
#include <vector>

namespace blockdev {

struct Janitor::Shared {
  base::Mutex mutex;
  base::Condition changed;
  std::vector<std::unique_ptr<Item>> items GUARDED_BY(mutex);
  bool stopping GUARDED_BY(mutex) = false;
};

Janitor::Janitor() : shared_(std::make_shared<Shared>()) {}

Janitor::~Janitor() {
  {
    base::MutexLock lock(shared_->mutex);
    shared_->stopping = true;
  }
  shared_->changed.notify_all();
  base::MutexLock lock(thread_mutex_);
  if (!thread_.joinable()) return;
  if (thread_.get_id() == std::this_thread::get_id()) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

void Janitor::post(std::unique_ptr<Item> item) {
  {
    base::MutexLock lock(thread_mutex_);
    if (!thread_.joinable()) {
      try {
        thread_ = std::thread(run, shared_);
      } catch (const std::system_error&) {
        return;  // destroys the item here
      }
    }
  }
  {
    base::MutexLock lock(shared_->mutex);
    shared_->items.push_back(std::move(item));
  }
  shared_->changed.notify_all();
}

void Janitor::run(std::shared_ptr<Shared> shared) {
  while (true) {
    std::vector<std::unique_ptr<Item>> taken;
    {
      base::MutexLock lock(shared->mutex);
      while (shared->items.empty() && !shared->stopping) shared->changed.wait(shared->mutex);
      if (shared->items.empty()) return;
      taken.swap(shared->items);
    }
    // Destroys them here, without the lock.
  }
}

}  // namespace blockdev
