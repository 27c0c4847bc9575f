#include "blockdev/flusher.h"

#include <cerrno>
#include <utility>

#include "vmm/base/check.h"

namespace blockdev {

Flusher::Flusher(std::shared_ptr<WritableImage> image, std::shared_ptr<Executor> executor,
                 std::unique_ptr<IoEngine> engine)
    : image_(std::move(image)), executor_(std::move(executor)), io_(std::move(engine)) {
  base::MutexLock lock(link_->mutex);
  link_->flusher = this;
}

Flusher::~Flusher() {
  {
    base::MutexLock lock(link_->mutex);
    link_->flusher = nullptr;
  }
  wait_until_idle();
}

void Flusher::submit(BlockRequest& request, FlushClient& client) {
  base::MutexLock lock(mutex_);
  waiting_.push_back({&request, &client, nullptr});
  post();
}

// Not until this is idle: others may flush for as long as they like.
int Flusher::flush_now() {
  std::optional<int> result;
  {
    base::MutexLock lock(mutex_);
    waiting_.push_back({nullptr, nullptr, &result});
    post();
  }
  wait_until([&]() REQUIRES_LOCK(mutex_) { return result.has_value(); });
  return *result;
}

void Flusher::wait_until_idle() {
  wait_until([this]() REQUIRES_LOCK(mutex_) { return !is_posted_; });
}

template <class Done>
void Flusher::wait_until(Done is_done) {
  while (true) {
    {
      base::MutexLock lock(mutex_);
      if (is_done()) return;
    }
    if (executor_->run_one()) continue;
    base::MutexLock lock(mutex_);
    // The task is another thread's: it will say when it is done.
    while (!is_done()) changed_.wait(mutex_);
  }
}

void Flusher::exclusively(const std::function<void(WaitingIo&)>& use) {
  while (true) {
    wait_until_idle();
    base::MutexLock lock(mutex_);
    if (is_posted_) continue;
    is_posted_ = true;
    break;
  }
  use(io_);
  const FlushNeed need = image_->flush_need();
  {
    base::MutexLock lock(mutex_);
    become_idle();
    if (!waiting_.empty() || need == FlushNeed::now) post();
  }
  if (need == FlushNeed::some_time) arrange(need);
}

void Flusher::replace_image(std::shared_ptr<WritableImage> image) {
  base::MutexLock lock(mutex_);
  CHECK(waiting_.empty());
  image_.swap(image);  // the one before goes without the lock
}

void Flusher::become_idle() {
  is_posted_ = false;
  changed_.notify_all();
}

void Flusher::arrange(FlushNeed need) {
  if (need == FlushNeed::now) {
    base::MutexLock lock(mutex_);
    post();
  } else if (!is_timer_set_.exchange(true)) {
    executor_->post_after(kBackgroundDelay, [link = link_] {
      base::MutexLock lock(link->mutex);
      if (link->flusher != nullptr) link->flusher->on_timer();
    });
  }
}

void Flusher::on_timer() {
  is_timer_set_.store(false);
  base::MutexLock lock(mutex_);
  // exclusively() looks at the need itself.
  if (is_posted_ || image_->flush_need() == FlushNeed::none) return;
  post();
}

void Flusher::post() {
  if (std::exchange(is_posted_, true)) return;
  executor_->post([this] { run(); });
}

void Flusher::answer_waiting_threads(const std::vector<Waiting>& answered, int error) {
  base::MutexLock lock(mutex_);
  for (const Waiting& waiting : answered) {
    if (waiting.result != nullptr) *waiting.result = error;
  }
  changed_.notify_all();
}

// Nothing of this object is touched after is_posted_ is false: its owner may destroy it then.
void Flusher::run() {
  while (true) {
    std::vector<Waiting> answered;
    std::shared_ptr<WritableImage> image;
    {
      base::MutexLock lock(mutex_);
      answered.swap(waiting_);
      image = image_;
    }
    const auto reason = answered.empty() ? WritableImage::FlushReason::background
                                         : WritableImage::FlushReason::guest;
    const int error = image->flush(io_, reason);
    answer_waiting_threads(answered, error);
    note(image->flush_need());
    // The last to know an image that has been replaced closes it: not with the lock.
    image.reset();
    // These may submit again from their answer.
    for (const Waiting& waiting : answered) {
      if (waiting.client != nullptr) waiting.client->on_flushed(*waiting.request, error);
    }
    base::MutexLock lock(mutex_);
    if (!waiting_.empty()) continue;
    // As a task of its own: those who were answered come first.
    // After a failure too: a write may have begun to wait while this one was ending.
    const FlushNeed need = image_->flush_need();
    if (need == FlushNeed::now) {
      executor_->post([this] { run(); });
    } else {
      // The timer may have come while this ran, and done nothing.
      note(need);
      become_idle();
    }
    return;
  }
}

}  // namespace blockdev
