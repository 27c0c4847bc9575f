#include "devices/virtio/queue_runner.h"

#include "vmm/base/check.h"

namespace devices::virtio {
namespace {

// What one call of serve() may begin with, so that the guest is interrupted now and then while it
// keeps the ring full.
constexpr u64 kBytesPerTurn = 16 * base::kMiB;

// Raises the count for as long as it lives. Relaxed: what it leads to is done under the lock.
class Interruption final {
 public:
  explicit Interruption(std::atomic<u32>& count) : count_(count) {
    count_.fetch_add(1, std::memory_order_relaxed);
  }
  ~Interruption() { count_.fetch_sub(1, std::memory_order_relaxed); }
  Interruption(const Interruption&) = delete;
  Interruption& operator=(const Interruption&) = delete;

 private:
  std::atomic<u32>& count_;
};

u64 bytes_of(const Queue::Taken& taken) {
  const Chain* chain = std::get_if<Chain>(&taken);
  return chain == nullptr ? 0 : chain->readable_bytes() + chain->writable_bytes();
}

}  // namespace

QueueRunner::QueueRunner(u32 index, memory::GuestMemory& memory, QueueHandler& handler,
                         DeviceStatus& status, QueueKicker& kicker)
    : index_(index), handler_(handler), status_(status), kicker_(kicker), queue_(memory) {
  held_.reserve(kMaxQueueSize);  // hold() allocates nothing
}

void QueueRunner::serve() {
  bool more = false;
  {
    base::MutexLock lock(mutex_);
    // Also while paused or stopped: the kernel may signal a completion after drain() took it, and
    // who waits for completion_fd() would be woken until somebody looks.
    handler_.poll();
    u64 bytes = 0;
    if (is_running()) more = retry_held(bytes) || serve_ring(bytes);
    interrupt_if_wanted();
  }
  if (more) kicker_.kick(index_);
}

bool QueueRunner::is_running() const { return queue_.is_started() && !paused_; }

bool QueueRunner::must_yield() const {
  mutex_.assert_held();
  return paused_ || interruptions_.load(std::memory_order_relaxed) != 0;
}

bool QueueRunner::retry_held(u64& bytes) {
  while (retry_count_ != 0 && !status_.needs_reset() && handler_.can_begin() && !must_yield()) {
    if (bytes >= kBytesPerTurn) return true;
    const u16 head = held_.front();
    held_.erase(held_.begin());
    --retry_count_;
    const Queue::Taken taken = queue_.retake(head);
    if (!std::holds_alternative<Chain>(taken)) held_.push_back(head);
    bytes += bytes_of(taken);
    begin(taken);
  }
  return false;
}

bool QueueRunner::serve_ring(u64& bytes) {
  // One ring's worth, for requests that move nothing.
  for (u32 left = kMaxQueueSize; left != 0 && bytes < kBytesPerTurn; --left) {
    // resume() or the next start kicks for what is left.
    if (status_.needs_reset() || must_yield()) return false;
    // The rest waits in the ring; a completion brings us back.
    if (!handler_.can_begin()) return false;
    const Queue::Taken taken = queue_.take();
    if (std::holds_alternative<Queue::Empty>(taken)) {
      if (!queue_.arm_notification()) return false;
      continue;
    }
    bytes += bytes_of(taken);
    begin(taken);
  }
  return true;
}

void QueueRunner::begin(const Queue::Taken& taken) {
  if (const auto* broken = std::get_if<Queue::Broken>(&taken)) {
    status_.fail(broken->rule);
    return;
  }
  const Chain& chain = std::get<Chain>(taken);
  if (handler_.begin(chain, *this) == BeginResult::malformed) {
    // It is taken and can never be answered; held is what such a chain is.
    held_.push_back(chain.head());
    status_.fail("a chain has no room for an answer");
  }
}

void QueueRunner::interrupt_if_wanted() {
  if (queue_.take_interrupt_request()) status_.interrupt(kUsedBuffer);
}

void QueueRunner::complete(u16 head, u32 written_bytes) {
  mutex_.assert_held();
  if (!forgetting_) queue_.complete(head, written_bytes);
}

void QueueRunner::hold(u16 head) {
  mutex_.assert_held();
  if (!forgetting_) held_.push_back(head);
}

void QueueRunner::pause() {
  const Interruption interruption(interruptions_);
  base::MutexLock lock(mutex_);
  paused_ = true;
}

void QueueRunner::drain() {
  const Interruption interruption(interruptions_);
  base::MutexLock lock(mutex_);
  if (!queue_.is_started()) return;
  handler_.drain();
  interrupt_if_wanted();
}

void QueueRunner::resume() {
  {
    base::MutexLock lock(mutex_);
    paused_ = false;
    retry_count_ = static_cast<u32>(held_.size());
    if (!queue_.is_started()) return;
  }
  kicker_.kick(index_);
}

void QueueRunner::start(const QueueState& state, EventIndex event_index, Indirect indirect) {
  base::MutexLock lock(mutex_);
  CHECK(!queue_.is_started());
  queue_.start(state, event_index, indirect);
  held_.assign(state.held.begin(), state.held.end());
  retry_count_ = 0;
}

void QueueRunner::stop() {
  const Interruption interruption(interruptions_);
  base::MutexLock lock(mutex_);
  if (!queue_.is_started()) return;
  forgetting_ = true;
  handler_.drain();
  forgetting_ = false;
  queue_.stop();
  held_.clear();
  retry_count_ = 0;
}

void QueueRunner::save(QueueState& state) const {
  base::MutexLock lock(mutex_);
  if (!queue_.is_started()) return;
  CHECK(handler_.in_flight_count() == 0);
  state.next_avail = queue_.next_avail();
  state.next_used = queue_.next_used();
  state.signalled_used = queue_.signalled_used();
  state.held = held_;
}

}  // namespace devices::virtio
