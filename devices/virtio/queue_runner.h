// QueueRunner: one queue at work. It joins the ring (Queue), the device type's part (QueueHandler)
// and the lifecycle: pause, drain, resume, reset, state.
//
// Whoever holds the lock may run the queue: its own thread in serve(), the control thread in
// drain(), a vCPU in reset(). So nothing has to be woken to be paused. Who serves gives the lock up
// after the chain at hand when somebody waits to pause or stop the queue.
//
// Invariant: after stop() no byte of guest memory is written for a request of before.
// Invariant: when drained, the chains taken and not completed are exactly the held ones.
//
// Thread: all calls from any thread.

#pragma once

#include <atomic>
#include <vector>

#include "devices/device.h"
#include "devices/virtio/handler.h"
#include "devices/virtio/queue.h"
#include "devices/virtio/status.h"
#include "vmm/base/mutex.h"

namespace devices::virtio {

class QueueRunner final : public QueueWorker, private ChainSink {
 public:
  QueueRunner(u32 index, memory::GuestMemory& memory, QueueHandler& handler, DeviceStatus& status,
              QueueKicker& kicker);

  void serve() override;
  int completion_fd() const override { return handler_.completion_fd(); }

  void pause();
  void drain();
  void resume();

  // DRIVER_OK and restore(). REQUIRES: not started; the state has passed the checks.
  void start(const QueueState& state, EventIndex event_index, Indirect indirect);
  // Device reset: waits for what is in flight and forgets it.
  void stop();

  // Puts the running part of the state (indices, held heads) into `state`. REQUIRES: drained.
  void save(QueueState& state) const;

 private:
  void complete(u16 head, u32 written_bytes) override;
  void hold(u16 head) override;
  bool must_yield() const override;

  bool is_running() const REQUIRES_LOCK(mutex_);
  // Both add to `bytes` what they began with; true if there may be more than one call's share.
  bool retry_held(u64& bytes) REQUIRES_LOCK(mutex_);
  bool serve_ring(u64& bytes) REQUIRES_LOCK(mutex_);
  void begin(const Queue::Taken& taken) REQUIRES_LOCK(mutex_);
  void interrupt_if_wanted() REQUIRES_LOCK(mutex_);

  const u32 index_;
  QueueHandler& handler_;
  DeviceStatus& status_;
  QueueKicker& kicker_;

  mutable base::Mutex mutex_;
  Queue queue_ GUARDED_BY(mutex_);
  std::vector<u16> held_ GUARDED_BY(mutex_);
  // How many of held_, from the front, are to be begun again. Not State: resume() sets it anew.
  u32 retry_count_ GUARDED_BY(mutex_) = 0;
  // Lifecycle, not State: the machine sets them around save() and restore().
  bool paused_ GUARDED_BY(mutex_) = false;
  bool forgetting_ GUARDED_BY(mutex_) = false;  // inside stop()
  // Calls of pause(), drain() and stop() that want the lock or have it.
  std::atomic<u32> interruptions_{0};
};

}  // namespace devices::virtio
