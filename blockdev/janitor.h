// Janitor: a thread that gives things back, so that the caller does not wait for it.
//
// Unmapping a gigabyte or closing an unlinked file of that size takes tens of milliseconds, and a
// revert must not. The thread starts with the first thing and ends with the janitor.
//
// Thread: all calls from any thread. The last holder of a janitor may be one of the things it
// destroys.

#pragma once

#include <memory>
#include <thread>
#include <utility>

#include "vmm/base/mutex.h"

namespace blockdev {

class Janitor final {
 public:
  Janitor();
  // Returns when everything given before is gone (except on the janitor's own thread).
  ~Janitor();
  Janitor(const Janitor&) = delete;
  Janitor& operator=(const Janitor&) = delete;

  // Destroys `thing` on the janitor's thread, or here if that thread cannot be started.
  template <class T>
  void dispose(T thing) {
    post(std::make_unique<Held<T>>(std::move(thing)));
  }

 private:
  struct Item {
    virtual ~Item() = default;
  };
  template <class T>
  struct Held final : Item {
    explicit Held(T t) : thing(std::move(t)) {}
    T thing;
  };
  struct Shared;

  void post(std::unique_ptr<Item> item);
  static void run(std::shared_ptr<Shared> shared);

  // Held by the thread too, which may outlive the janitor by its last item.
  std::shared_ptr<Shared> shared_;
  base::Mutex thread_mutex_;
  std::thread thread_ GUARDED_BY(thread_mutex_);
};

}  // namespace blockdev
