#include "devices/virtio/status.h"

namespace devices::virtio {

void DeviceStatus::interrupt(InterruptBit cause) {
  interrupt_status_.fetch_or(cause, std::memory_order_acq_rel);
  base::MutexLock lock(line_mutex_);
  irq_.pulse();
}

void DeviceStatus::fail(const char* rule) {
  const u32 before = status_.fetch_or(kNeedsReset, std::memory_order_acq_rel);
  if ((before & kNeedsReset) != 0) return;
  if (log_limit_.allows()) {
    base::log(base::LogLevel::warning, "{}: the guest's driver broke a rule, device stops: {}",
              name_, rule);
  }
  interrupt(kConfigChange);
}

void DeviceStatus::reset() {
  status_.store(0, std::memory_order_release);
  interrupt_status_.store(0, std::memory_order_release);
}

void DeviceStatus::restore(u32 status, u32 interrupt_status) {
  status_.store(status, std::memory_order_release);
  interrupt_status_.store(interrupt_status, std::memory_order_release);
  if (interrupt_status == 0) return;
  // The edge may have been lost between the device and the saved interrupt controller; one too many
  // is answered by the driver's reading InterruptStatus.
  base::MutexLock lock(line_mutex_);
  irq_.pulse();
}

}  // namespace devices::virtio
