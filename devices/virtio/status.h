// DeviceStatus: the two registers of a virtio device that its queues change on their own: the
// status byte (DEVICE_NEEDS_RESET) and InterruptStatus, with the interrupt line.
//
// Thread: all calls from any thread; a leaf but for the interrupt line.

#pragma once

#include <atomic>
#include <string>
#include <utility>

#include "devices/irq.h"
#include "vmm/base/log.h"
#include "vmm/base/mutex.h"
#include "vmm/base/types.h"

namespace devices::virtio {

// virtio 1.2, 2.1 "Device Status Field"
enum StatusBit : u32 {
  kAcknowledge = 1,  // VIRTIO_CONFIG_S_ACKNOWLEDGE
  kDriver = 2,       // VIRTIO_CONFIG_S_DRIVER
  kDriverOk = 4,     // VIRTIO_CONFIG_S_DRIVER_OK
  kFeaturesOk = 8,   // VIRTIO_CONFIG_S_FEATURES_OK
  kNeedsReset = 64,  // VIRTIO_CONFIG_S_NEEDS_RESET
  kFailed = 128,     // VIRTIO_CONFIG_S_FAILED
};

// virtio 1.2, 4.2.2 "MMIO Device Register Layout", InterruptStatus
enum InterruptBit : u32 {
  kUsedBuffer = 1,    // VIRTIO_MMIO_INT_VRING
  kConfigChange = 2,  // VIRTIO_MMIO_INT_CONFIG
};

class DeviceStatus final {
 public:
  // `name` is for the log.
  DeviceStatus(std::string name, IrqLine& irq) : name_(std::move(name)), irq_(irq) {}

  const std::string& name() const { return name_; }

  u32 status() const { return status_.load(std::memory_order_acquire); }
  bool needs_reset() const { return (status() & kNeedsReset) != 0; }
  void add_status(u32 bits) { status_.fetch_or(bits, std::memory_order_acq_rel); }

  u32 interrupt_status() const { return interrupt_status_.load(std::memory_order_acquire); }
  void interrupt(InterruptBit cause);
  void acknowledge(u32 causes) { interrupt_status_.fetch_and(~causes, std::memory_order_acq_rel); }

  // The guest broke a rule, so the device stops: 2.1.1 "Driver Requirements", DEVICE_NEEDS_RESET.
  // One line in the log, at a limited rate.
  void fail(const char* rule);

  // REQUIRES for both: no queue is running.
  void reset();
  // Interrupts again for whatever had not been acknowledged.
  void restore(u32 status, u32 interrupt_status);

 private:
  const std::string name_;
  IrqLine& irq_;
  std::atomic<u32> status_{0};
  std::atomic<u32> interrupt_status_{0};
  // Guards the line: two queues that pulse it at once would make one edge of two, and the second
  // could be lost behind the guest's acknowledgement of the first.
  base::Mutex line_mutex_;
  base::RateLimit log_limit_{8};
};

}  // namespace devices::virtio
