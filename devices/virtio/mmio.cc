#include "devices/virtio/mmio.h"

#include <algorithm>
#include <bitset>
#include <cstring>

#include "devices/virtio/mmio_registers.h"
#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace devices::virtio {
namespace {

// The order a driver must set them in (3.1.1 "Driver Requirements: Device Initialization").
constexpr u32 kInitialization[] = {kAcknowledge, kDriver, kFeaturesOk, kDriverOk};

// The bits a driver may hold at once: none, or the first few of kInitialization; and kFailed.
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

bool has_been_started(const QueueState& queue) {
  return queue.next_avail != 0 || queue.next_used != 0 || queue.signalled_used != 0 ||
         !queue.held.empty();
}

bool is_untouched(const QueueState& queue) {
  return queue.size == 0 && !queue.ready && queue.descriptor_table == 0 && queue.avail_ring == 0 &&
         queue.used_ring == 0 && !has_been_started(queue);
}

// DRIVER_OK and restore() ask the same.
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

void set_half(u64& value, u32 half, u32 bits) {
  const unsigned shift = half * 32;
  value = (value & ~(u64{0xffffffff} << shift)) | u64{bits} << shift;
}

u32 half_of(u64 value, u32 half) {
  return half > 1 ? 0 : static_cast<u32>(value >> (half * 32));
}

}  // namespace

MmioDevice::MmioDevice(u32 slot, memory::GuestMemory& memory, IrqLine& irq, QueueKicker& kicker,
                       std::unique_ptr<DeviceType> type)
    : slot_(slot),
      memory_(memory),
      kicker_(kicker),
      type_(std::move(type)),
      status_(fmt::format("virtio-mmio.{}", slot), irq) {
  CHECK(type_->queue_count() != 0 && type_->queue_count() <= kMaxQueueCount);
  for (u32 index = 0; index < type_->queue_count(); ++index) {
    runners_.push_back(std::make_unique<QueueRunner>(index, memory_, type_->queue_handler(index),
                                                     status_, kicker_));
    workers_.push_back(runners_.back().get());
  }
  state_.device_id = type_->device_id();
  state_.queues.resize(type_->queue_count());
}

MmioDevice::~MmioDevice() {
  reset();
}

// --- registers ---------------------------------------------------------------------------------

void MmioDevice::read(u64 offset, std::span<u8> data) {
  std::ranges::fill(data, u8{0});
  if (offset >= kConfigOffset) {
    const std::span<const u8> config = type_->config_space();
    const u64 start = offset - kConfigOffset;
    if (start >= config.size()) return;
    std::memcpy(data.data(), config.data() + start,
                std::min<u64>(data.size(), config.size() - start));
    return;
  }
  // 4.2.2.2: the driver must use 32-bit aligned accesses here.
  if (data.size() != sizeof(le32) || !base::is_aligned(offset, sizeof(le32))) return;
  const le32 value(read_register(offset));
  std::memcpy(data.data(), &value, sizeof value);
}

void MmioDevice::write(u64 offset, std::span<const u8> data) {
  // Nothing in our configuration spaces is the driver's to write.
  if (offset >= kConfigOffset) return;
  if (data.size() != sizeof(le32) || !base::is_aligned(offset, sizeof(le32))) return;
  le32 value;
  std::memcpy(&value, data.data(), sizeof value);
  write_register(offset, value);
}

u32 MmioDevice::read_register(u64 offset) {
  base::MutexLock lock(mutex_);
  switch (static_cast<Register>(offset)) {
    case Register::magic_value: return kMagicValue;
    case Register::version: return kVersion;
    case Register::device_id: return type_->device_id();
    case Register::vendor_id: return kVendorId;
    case Register::device_features:
      return half_of(offered_features(), state_.device_features_select);
    case Register::queue_size_max: return selected_queue() == nullptr ? 0 : kMaxQueueSize;
    case Register::queue_ready:
      return selected_queue() != nullptr && selected_queue()->ready ? 1 : 0;
    case Register::interrupt_status: return status_.interrupt_status();
    case Register::status: return status_.status();
    case Register::shared_memory_length_low:
    case Register::shared_memory_length_high:
    case Register::shared_memory_base_low:
    case Register::shared_memory_base_high: return ~u32{0};
    case Register::config_generation: return 0;
    default: return 0;
  }
}

void MmioDevice::write_register(u64 offset, u32 value) {
  // Without the lock: whatever else a vCPU does to this device does not hold up a notification.
  if (static_cast<Register>(offset) == Register::queue_notify) {
    if (value < runners_.size()) kicker_.kick(value);
    return;
  }
  base::MutexLock lock(mutex_);
  switch (static_cast<Register>(offset)) {
    case Register::device_features_select: state_.device_features_select = value; break;
    case Register::driver_features_select: state_.driver_features_select = value; break;
    case Register::driver_features: write_driver_features(value); break;
    case Register::queue_select: state_.queue_select = value; break;
    case Register::interrupt_acknowledge: status_.acknowledge(value); break;
    case Register::status: write_status(value); break;
    default: write_queue_register(offset, value); break;
  }
}

void MmioDevice::write_driver_features(u32 value) {
  // Between DRIVER and FEATURES_OK (3.1.1, step 4).
  if (status_.status() != (kAcknowledge | kDriver) || state_.driver_features_select > 1) return;
  set_half(state_.driver_features, state_.driver_features_select, value);
}

void MmioDevice::write_queue_register(u64 offset, u32 value) {
  // Between FEATURES_OK and DRIVER_OK (3.1.1, step 7); afterwards the geometry is frozen.
  if (status_.status() != (kAcknowledge | kDriver | kFeaturesOk)) return;
  QueueState* queue = selected_queue();
  if (queue == nullptr) return;
  switch (static_cast<Register>(offset)) {
    case Register::queue_size: queue->size = value; break;
    case Register::queue_ready: queue->ready = (value & 1) != 0; break;
    case Register::queue_descriptor_low: set_half(queue->descriptor_table, 0, value); break;
    case Register::queue_descriptor_high: set_half(queue->descriptor_table, 1, value); break;
    case Register::queue_driver_low: set_half(queue->avail_ring, 0, value); break;
    case Register::queue_driver_high: set_half(queue->avail_ring, 1, value); break;
    case Register::queue_device_low: set_half(queue->used_ring, 0, value); break;
    case Register::queue_device_high: set_half(queue->used_ring, 1, value); break;
    default: break;
  }
}

// One step of the initialization at a time, no bit taken back (2.1.1); 0 resets.
void MmioDevice::write_status(u32 value) {
  if (value == 0) {
    reset_locked();
    return;
  }
  const u32 before = status_.status() & ~u32{kNeedsReset};
  value &= ~u32{kNeedsReset};
  const u32 added = value & ~before;
  if ((before & ~value) != 0 || (before & kFailed) != 0) return;
  if (!base::is_power_of_two(added) || !is_legal_status(value)) return;

  if (added == kFeaturesOk && !check_features(state_.driver_features, offered_features())) {
    return;  // 2.2.2: the driver reads back that FEATURES_OK is not set
  }
  status_.add_status(added);
  if (added == kDriverOk) activate();
}

void MmioDevice::activate() {
  const Result<void> geometry = check_all_geometry(state_.queues, memory_);
  if (!geometry) {
    status_.fail(geometry.error().message().c_str());
    return;
  }
  start_queues();
  // What the driver made available before it set DRIVER_OK.
  for (u32 index = 0; index < runners_.size(); ++index) kicker_.kick(index);
}

void MmioDevice::start_queues() {
  const EventIndex event_index =
      (state_.driver_features & kFeatureEventIndex) != 0 ? EventIndex::on : EventIndex::off;
  const Indirect indirect =
      (state_.driver_features & kFeatureIndirect) != 0 ? Indirect::on : Indirect::off;
  for (u32 index = 0; index < runners_.size(); ++index) {
    const QueueState& queue = state_.queues[index];
    if (queue.ready) runners_[index]->start(queue, event_index, indirect);
  }
}

void MmioDevice::reset_locked() {
  for (const auto& runner : runners_) runner->stop();
  status_.reset();
  MmioState fresh;
  fresh.device_id = type_->device_id();
  fresh.queues.resize(runners_.size());
  state_ = std::move(fresh);
}

u64 MmioDevice::offered_features() const {
  return type_->device_features() | kFeatureVersion1 | kFeatureIndirect | kFeatureEventIndex;
}

QueueState* MmioDevice::selected_queue() {
  return state_.queue_select < state_.queues.size() ? &state_.queues[state_.queue_select] : nullptr;
}

// --- lifecycle ---------------------------------------------------------------------------------

void MmioDevice::reset() {
  base::MutexLock lock(mutex_);
  reset_locked();
}

void MmioDevice::pause() {
  for (const auto& runner : runners_) runner->pause();
}

void MmioDevice::drain() {
  for (const auto& runner : runners_) runner->drain();
}

void MmioDevice::resume() {
  for (const auto& runner : runners_) runner->resume();
}

// --- state -------------------------------------------------------------------------------------

std::string MmioDevice::state_name() const {
  return fmt::format("virtio-mmio.{}", slot_);
}

MmioState MmioDevice::save() const {
  base::MutexLock lock(mutex_);
  MmioState state = state_;
  state.status = status_.status();
  state.interrupt_status = status_.interrupt_status();
  for (u32 index = 0; index < runners_.size(); ++index) runners_[index]->save(state.queues[index]);
  return state;
}

Result<void> MmioDevice::validate(const MmioState& state) const {
  if (state.device_id != type_->device_id() || state.queues.size() != runners_.size()) {
    return make_error(ErrorKind::corrupt,
                      "state of device type {} with {} queues, this is {} with {}", state.device_id,
                      state.queues.size(), type_->device_id(), runners_.size());
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
    TRY(check_features(state.driver_features, offered_features()));
  }
  const bool starts = is_driver_ok && check_all_geometry(state.queues, memory_).has_value();
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
      TRY(in_queue(check_geometry(queue, memory_)));
    }
  }
  return {};
}

Result<void> MmioDevice::restore(const MmioState& state) {
  TRY(validate(state));
  base::MutexLock lock(mutex_);
  for (const auto& runner : runners_) runner->stop();
  state_ = state;
  const bool starts =
      (state.status & kDriverOk) != 0 && check_all_geometry(state.queues, memory_).has_value();
  if (starts) start_queues();
  status_.restore(state.status, state.interrupt_status);
  return {};
}

}  // namespace devices::virtio
