// QueueThread: the thread of one virtqueue. It waits for the guest's kick (an eventfd that KVM
// signals on a write to the notify register) or for the completion of a request, and lets the queue's
// worker serve. It takes no part in pausing: the worker's own lock does that (devices/device.h), so
// that a revert wakes no thread that has nothing to do.
//
// Thread: kick() from any thread; the rest from the control thread.

#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "devices/device.h"
#include "vmm/base/fd.h"

namespace vmm {

class QueueThread final {
 public:
  // `worker` and `kick` outlive the thread.
  static Result<std::unique_ptr<QueueThread>> start(devices::QueueWorker& worker,
                                                    const base::EventFd& kick, std::string name);
  // Stops the thread. What is in flight stays with the worker.
  ~QueueThread();

 private:
  QueueThread(devices::QueueWorker& worker, const base::EventFd& kick, base::EventFd stop);
  void loop(const base::Fd& epoll);

  devices::QueueWorker& worker_;
  const base::EventFd& kick_;
  base::EventFd stop_;
  std::thread thread_;
};

// The kick eventfds of one device's queues.
class QueueKicks final : public devices::QueueKicker {
 public:
  static Result<std::unique_ptr<QueueKicks>> create(u32 queue_count);

  void kick(u32 queue_index) override { events_[queue_index].signal(); }
  const base::EventFd& event(u32 queue_index) const { return events_[queue_index]; }
  u32 queue_count() const { return static_cast<u32>(events_.size()); }

 private:
  std::vector<base::EventFd> events_;
};

}  // namespace vmm
