#include "devices/virtio/mmio.h"

#include <algorithm>
#include <cstring>

#include "devices/virtio/mmio_registers.h"
#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace devices::virtio {
namespace {

void set_half(u64& value, u32 half, u32 bits) {
  const unsigned shift = half * 32;
  value = (value & ~(u64{0xffffffff} << shift)) | u64{bits} << shift;
}

u32 half_of(u64 value, u32 half) { return half > 1 ? 0 : static_cast<u32>(value >> (half * 32)); }

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

MmioDevice::~MmioDevice() { reset(); }

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
    if (!queue.ready) continue;
    type_->queue_handler(index).use_features(state_.driver_features);
    runners_[index]->start(queue, event_index, indirect);
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

std::string MmioDevice::state_name() const { return fmt::format("virtio-mmio.{}", slot_); }

MmioState MmioDevice::save() const {
  base::MutexLock lock(mutex_);
  MmioState state = state_;
  state.status = status_.status();
  state.interrupt_status = status_.interrupt_status();
  for (u32 index = 0; index < runners_.size(); ++index) runners_[index]->save(state.queues[index]);
  return state;
}

Result<void> MmioDevice::validate(const MmioState& state) const {
  return check_state(state, {type_->device_id(), runners_.size(), offered_features()}, memory_);
}

Result<void> MmioDevice::restore(const MmioState& state) {
  TRY(validate(state));
  base::MutexLock lock(mutex_);
  for (const auto& runner : runners_) runner->stop();
  state_ = state;
  if (has_running_queues(state, memory_)) start_queues();
  status_.restore(state.status, state.interrupt_status);
  return {};
}

}  // namespace devices::virtio
