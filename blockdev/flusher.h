// Flusher: makes a disk durable, one flush at a time, on an executor.
//
// Flushes that come while one runs are answered together by the next (group commit). What no guest
// asks for is flushed some seconds after it changed, or at once when writes wait for it.
//
// Thread: all calls from any thread.

#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "blockdev/executor.h"
#include "blockdev/waiting_io.h"
#include "blockdev/writable_image.h"

namespace blockdev {

class FlushClient {
 public:
  virtual ~FlushClient() = default;
  // From any thread.
  virtual void on_flushed(BlockRequest& request, int error_number) = 0;
};

class Flusher final {
 public:
  // What is lost at most when the host fails and the guest never flushed.
  static constexpr std::chrono::seconds kBackgroundDelay{5};

  Flusher(std::shared_ptr<WritableImage> image, std::shared_ptr<Executor> executor,
          std::unique_ptr<IoEngine> engine);
  // Waits for what runs. REQUIRES: no flush was submitted that is not answered.
  ~Flusher();

  void submit(BlockRequest& request, FlushClient& client);
  // Call after a change.
  void take_note() { note(image_->flush_need()); }
  // Returns when it is done, with 0 or an errno.
  int flush_now();

  // Calls it while no flush runs; flushes submitted meanwhile wait.
  void exclusively(const std::function<void(WaitingIo&)>& use);
  // Waits for nothing: a flush of the image before may be running still, and keeps it.
  // REQUIRES: nothing submitted; nobody calls take_note().
  void replace_image(std::shared_ptr<WritableImage> image);

 private:
  struct Waiting {
    BlockRequest* request;  // null: flush_now()
    FlushClient* client;
    std::optional<int>* result;  // guarded by mutex_
  };
  // What a timer knows of this object, which may be gone when it fires.
  struct Link {
    base::Mutex mutex;
    Flusher* flusher GUARDED_BY(mutex) = nullptr;
  };

  void note(FlushNeed need) {
    if (need == FlushNeed::none) return;
    if (need == FlushNeed::some_time && is_timer_set_.load(std::memory_order_relaxed)) return;
    arrange(need);
  }
  void arrange(FlushNeed need);
  void post() REQUIRES_LOCK(mutex_);
  void on_timer();
  void run();
  void answer_waiting_threads(const std::vector<Waiting>& answered, int error);
  void wait_until_idle();
  // `is_done` is asked with mutex_ held.
  template <class Done>
  void wait_until(Done is_done);
  void become_idle() REQUIRES_LOCK(mutex_);

  // Changes under mutex_, and while nobody calls take_note().
  std::shared_ptr<WritableImage> image_;
  const std::shared_ptr<Executor> executor_;
  WaitingIo io_;
  const std::shared_ptr<Link> link_ = std::make_shared<Link>();
  std::atomic<bool> is_timer_set_{false};

  base::Mutex mutex_;
  base::Condition changed_;
  std::vector<Waiting> waiting_ GUARDED_BY(mutex_);
  bool is_posted_ GUARDED_BY(mutex_) = false;  // and not at its end yet
};

}  // namespace blockdev
