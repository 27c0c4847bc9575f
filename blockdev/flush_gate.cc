#include "blockdev/flush_gate.h"

#include <sys/epoll.h>

#include <algorithm>

#include "vmm/base/check.h"
#include "vmm/base/fd.h"

namespace blockdev {

// The disk's own queue, and the flushes that wait in front of it.
class FlushGate::Queue final : public BlockQueue {
 public:
  static Result<std::unique_ptr<Queue>> create(FlushGate& gate, std::unique_ptr<BlockQueue> disk) {
    base::EventFd opened = TRY(base::EventFd::create());
    base::Fd either(::epoll_create1(EPOLL_CLOEXEC));
    if (!either) return errno_error("epoll_create");
    for (const int fd : {opened.fd().get(), disk->completion_fd()}) {
      epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
      if (fd >= 0 && ::epoll_ctl(either.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
        return errno_error("epoll_ctl");
      }
    }
    return std::unique_ptr<Queue>(
        new Queue(gate, std::move(disk), std::move(opened), std::move(either)));
  }
  ~Queue() override {
    CHECK(waiting_.empty());
    base::MutexLock lock(gate_.mutex_);
    std::erase(gate_.queues_, this);
  }

  void submit(BlockRequest& request) override {
    if (request.op != BlockOp::flush) return disk_->submit(request);
    waiting_.push_back(&request);
    // Pairs with opened(): either it sees that somebody waits, or this sees that the gate is open.
    has_waiting_.store(true);
    pass_if_open();
  }
  void poll() override {
    if (was_opened_.load() && was_opened_.exchange(false)) opened_.take();
    if (!waiting_.empty()) pass_if_open();
    disk_->poll();
  }
  int completion_fd() const override { return either_.get(); }
  u32 in_flight_count() const override {
    return disk_->in_flight_count() + static_cast<u32>(waiting_.size());
  }
  void drain() override {
    poll();
    disk_->drain();
    std::vector<BlockRequest*> not_begun;
    not_begun.swap(waiting_);
    for (BlockRequest* request : not_begun) {
      request->client->on_done(*request, BlockStatus::not_begun);
    }
  }

  // From any thread.
  void opened() {
    if (!has_waiting_.load()) return;
    // In this order: a poll() in between would else take a signal that is still to come, and leave
    // the descriptor readable for good.
    opened_.signal();
    was_opened_.store(true);
  }

 private:
  Queue(FlushGate& gate, std::unique_ptr<BlockQueue> disk, base::EventFd opened, base::Fd either)
      : gate_(gate),
        disk_(std::move(disk)),
        opened_(std::move(opened)),
        either_(std::move(either)) {
    base::MutexLock lock(gate_.mutex_);
    gate_.queues_.push_back(this);
  }

  void pass_if_open() {
    if (gate_.is_closed()) return;
    std::vector<BlockRequest*> passing;
    passing.swap(waiting_);
    has_waiting_.store(false);
    const BlockStatus failure = gate_.failure_.load();
    for (BlockRequest* request : passing) {
      if (failure == BlockStatus::ok) {
        disk_->submit(*request);
      } else {
        request->client->on_done(*request, failure);
      }
    }
  }

  FlushGate& gate_;
  const std::unique_ptr<BlockQueue> disk_;
  const base::EventFd opened_;
  const base::Fd either_;  // readable while one of the two is
  std::vector<BlockRequest*> waiting_;
  std::atomic<bool> has_waiting_{false};
  std::atomic<bool> was_opened_{false};  // opened_ is to be taken
};

FlushGate::~FlushGate() {
  base::MutexLock lock(mutex_);
  CHECK(queues_.empty());
}

Result<std::unique_ptr<BlockQueue>> FlushGate::open_queue() {
  std::unique_ptr<BlockQueue> queue = TRY(disk_->open_queue());
  return std::unique_ptr<BlockQueue>(TRY(Queue::create(*this, std::move(queue))));
}

void FlushGate::release() {
  const u32 before = holders_.fetch_sub(1);
  CHECK(before != 0);
  if (before != 1) return;
  base::MutexLock lock(mutex_);
  for (Queue* queue : queues_) queue->opened();
}

void FlushGate::fail(BlockStatus status) { failure_.store(status); }

}  // namespace blockdev
