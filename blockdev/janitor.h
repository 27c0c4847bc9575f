// Janitor: a thread that gives things back, so that the caller does not wait for it.
//
// Unmapping a gigabyte or closing an unlinked file of that size takes tens of milliseconds, and a
// revert must not. The thread starts with the first thing and ends with the janitor.
//
// Thread: dispose() from any thread.

#pragma once

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "vmm/base/mutex.h"

namespace blockdev {

class Janitor final {
 public:
  Janitor() = default;
  ~Janitor();
  Janitor(const Janitor&) = delete;
  Janitor& operator=(const Janitor&) = delete;

  // Destroys `thing` on the janitor's thread, or here if that thread cannot be started.
  template <class T>
  void dispose(T thing) {
    post(std::make_unique<Held<T>>(std::move(thing)));
  }
  // Returns when all that was given before is gone. For tests.
  void wait_idle();

 private:
  struct Item {
    virtual ~Item() = default;
  };
  template <class T>
  struct Held final : Item {
    explicit Held(T t) : thing(std::move(t)) {}
    T thing;
  };

  void post(std::unique_ptr<Item> item);
  void run();

  base::Mutex mutex_;
  base::Condition changed_;
  std::vector<std::unique_ptr<Item>> items_ GUARDED_BY(mutex_);
  bool busy_ GUARDED_BY(mutex_) = false;
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::thread thread_ GUARDED_BY(mutex_);
};

}  // namespace blockdev
