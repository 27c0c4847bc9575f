#include "devices/virtio/mmio_state.h"

#include <bitset>

#include "devices/virtio/status.h"

namespace devices::virtio {
namespace {

// The order a driver must set them in (3.1.1 "Driver Requirements: Device Initialization").
constexpr u32 kInitialization[] = {kAcknowledge, kDriver, kFeaturesOk, kDriverOk};

bool has_been_started(const QueueState& queue) {
  return queue.next_avail != 0 || queue.next_used != 0 || queue.signalled_used != 0 ||
         !queue.held.empty();
}

bool is_untouched(const QueueState& queue) {
  return queue.size == 0 && !queue.ready && queue.descriptor_table == 0 && queue.avail_ring == 0 &&
         queue.used_ring == 0 && !has_been_started(queue);
}

// What only a restored state can get wrong: the indices of a queue that runs.
Result<void> check_progress(const QueueState& queue) {
  if (!queue.ready) {
    if (has_been_started(queue)) {
      return make_error(ErrorKind::corrupt, "a queue that is not ready has been used");
    }
    return {};
  }
  std::bitset<kMaxQueueSize> heads;
  for (const u16 head : queue.held) {
    if (head >= queue.size || heads.test(head)) {
      return make_error(ErrorKind::corrupt, "held head {} is doubled or outside the queue", head);
    }
    heads.set(head);
  }
  const u16 taken = static_cast<u16>(queue.next_avail - queue.next_used);
  if (taken != queue.held.size()) {
    return make_error(ErrorKind::corrupt, "{} chains are taken, {} are held", taken,
                      queue.held.size());
  }
  const u16 unsignalled = static_cast<u16>(queue.next_used - queue.signalled_used);
  if (unsignalled > queue.size) {
    return make_error(ErrorKind::corrupt, "signalled_used {} is far from next_used {}",
                      queue.signalled_used, queue.next_used);
  }
  return {};
}

}  // namespace

Result<void> check_state(const MmioState& state, const MmioFacts& facts,
                         const memory::GuestMemory& memory) {
  if (state.device_id != facts.device_id || state.queues.size() != facts.queue_count) {
    return make_error(ErrorKind::corrupt,
                      "state of device type {} with {} queues, this is {} with {}", state.device_id,
                      state.queues.size(), facts.device_id, facts.queue_count);
  }
  const u32 driver_bits = state.status & ~u32{kNeedsReset};
  const bool is_driver_ok = (state.status & kDriverOk) != 0;
  if (!is_legal_status(driver_bits) || ((state.status & kNeedsReset) != 0 && !is_driver_ok)) {
    return make_error(ErrorKind::corrupt, "status {:#x} cannot be", state.status);
  }
  if ((state.interrupt_status & ~u32{kUsedBuffer | kConfigChange}) != 0) {
    return make_error(ErrorKind::corrupt, "interrupt status {:#x} cannot be",
                      state.interrupt_status);
  }
  if (!is_driver_ok && state.interrupt_status != 0) {
    return make_error(ErrorKind::corrupt, "an interrupt before DRIVER_OK");
  }
  if ((state.status & kDriver) == 0 && state.driver_features != 0) {
    return make_error(ErrorKind::corrupt, "features {:#x} without a driver", state.driver_features);
  }
  if ((state.status & kFeaturesOk) != 0) {
    TRY(check_features(state.driver_features, facts.offered_features));
  }
  const bool starts = has_running_queues(state, memory);
  for (u32 index = 0; index < state.queues.size(); ++index) {
    const QueueState& queue = state.queues[index];
    const auto in_queue = [&](Result<void> result) -> Result<void> {
      if (result) return result;
      return std::move(result).error().with_context(fmt::format("queue {}", index));
    };
    if ((state.status & kFeaturesOk) == 0 && !is_untouched(queue)) {
      return in_queue(make_error(ErrorKind::corrupt, "set up before FEATURES_OK"));
    }
    if (starts) {
      TRY(in_queue(check_progress(queue)));
      continue;
    }
    if (has_been_started(queue)) {
      return in_queue(make_error(ErrorKind::corrupt, "used, but its device does not run"));
    }
    // A device that was refused at DRIVER_OK says so.
    if (is_driver_ok && (state.status & kNeedsReset) == 0 && queue.ready) {
      TRY(in_queue(check_geometry(queue, memory)));
    }
  }
  return {};
}

bool has_running_queues(const MmioState& state, const memory::GuestMemory& memory) {
  return (state.status & kDriverOk) != 0 && check_all_geometry(state.queues, memory).has_value();
}

bool is_legal_status(u32 bits) {
  bits &= ~u32{kFailed};
  u32 legal = 0;
  if (bits == legal) return true;
  for (const u32 step : kInitialization) {
    legal |= step;
    if (bits == legal) return true;
  }
  return false;
}

Result<void> check_features(u64 driver, u64 offered) {
  if ((driver & ~offered) != 0) {
    return make_error(ErrorKind::corrupt, "features {:#x} were never offered", driver & ~offered);
  }
  if ((driver & kFeatureVersion1) == 0) {
    return make_error(ErrorKind::corrupt, "VIRTIO_F_VERSION_1 is missing");
  }
  return {};
}

Result<void> check_all_geometry(std::span<const QueueState> queues,
                                const memory::GuestMemory& memory) {
  for (const QueueState& queue : queues) {
    if (queue.ready) TRY(check_geometry(queue, memory));
  }
  return {};
}

}  // namespace devices::virtio
