// MmioDevice: a virtio device behind a register window in memory (virtio 1.2, 4.2 "Virtio Over
// MMIO", version 2): any DeviceType made visible to the guest.
//
// The registers are a state machine that a hostile guest drives: what is not allowed in the present
// state is ignored, an access of the wrong width reads zero, and the geometry of the queues is
// checked and frozen when the guest sets DRIVER_OK. What breaks the device after that ends in
// DEVICE_NEEDS_RESET, never in an error of the VMM.
//
// Lock order: the registers' lock, then a queue's, then the status'.
// Thread: read() and write() from any vCPU; lifecycle and state from the control thread.

#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "devices/bus.h"
#include "devices/device.h"
#include "devices/virtio/handler.h"
#include "devices/virtio/mmio_state.h"
#include "devices/virtio/queue_runner.h"
#include "devices/virtio/status.h"
#include "vmm/base/mutex.h"

namespace devices::virtio {

inline constexpr u32 kMaxQueueCount = 16;

class MmioDevice final : public Device, public BusHandler, public base::StatefulOf<MmioState> {
 public:
  static constexpr u64 kWindowBytes = 0x1000;
  // Where a 32-bit write of the queue's index notifies it: for KVM's ioeventfd.
  static constexpr u64 kNotifyOffset = 0x50;

  // `slot` names the section: "virtio-mmio.SLOT". All references outlive the device; `irq` is an
  // edge-triggered line.
  MmioDevice(u32 slot, memory::GuestMemory& memory, IrqLine& irq, QueueKicker& kicker,
             std::unique_ptr<DeviceType> type);
  // Waits for what is in flight. REQUIRES: no worker runs any more.
  ~MmioDevice() override;

  // One for each queue, in the queues' order; they live as long as the device.
  std::span<QueueWorker* const> workers() const { return workers_; }

  void read(u64 offset, std::span<u8> data) override;
  void write(u64 offset, std::span<const u8> data) override;

  base::Stateful& stateful() override { return *this; }
  void reset() override;
  void pause() override;
  void drain() override;
  void resume() override;

  std::string state_name() const override;
  MmioState save() const override;
  Result<void> validate(const MmioState& state) const override;
  Result<void> restore(const MmioState& state) override;

 private:
  u32 read_register(u64 offset);
  void write_register(u64 offset, u32 value);
  void write_status(u32 value) REQUIRES_LOCK(mutex_);
  void write_driver_features(u32 value) REQUIRES_LOCK(mutex_);
  void write_queue_register(u64 offset, u32 value) REQUIRES_LOCK(mutex_);
  void activate() REQUIRES_LOCK(mutex_);
  void reset_locked() REQUIRES_LOCK(mutex_);
  void start_queues() REQUIRES_LOCK(mutex_);

  u64 offered_features() const;
  QueueState* selected_queue() REQUIRES_LOCK(mutex_);

  const u32 slot_;
  memory::GuestMemory& memory_;
  QueueKicker& kicker_;
  std::unique_ptr<DeviceType> type_;
  DeviceStatus status_;  // holds status and interrupt_status in place of state_
  std::vector<std::unique_ptr<QueueRunner>> runners_;  // hold indices and held heads likewise
  std::vector<QueueWorker*> workers_;

  mutable base::Mutex mutex_;
  MmioState state_ GUARDED_BY(mutex_);
};

}  // namespace devices::virtio
