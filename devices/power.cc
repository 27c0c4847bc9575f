#include "devices/power.h"

#include <algorithm>
#include <cstring>

#include "vmm/base/check.h"
#include "vmm/base/wire.h"

namespace devices {
namespace {

constexpr u32 kAllEvents = Power::kPowerButton | Power::kGenerationChanged;

// ACPI 6.5, table 4.19 "Sleep Control Register"
constexpr u8 kSleepTypeMask = 7 << 2;  // SLP_TYPx
constexpr u8 kSleepEnable = 1 << 5;    // SLP_EN

}  // namespace

Power::Power(IrqLine& irq, MachineEvents& machine, memory::GuestMemory& memory, Gpa generation_id)
    : irq_(irq),
      memory_(memory),
      generation_id_(generation_id),
      reset_register_(machine),
      sleep_registers_(machine),
      keyboard_controller_(machine),
      event_register_(*this) {
  CHECK(memory_.ram_offset(generation_id_, sizeof(Generation)));
}

void Power::ResetRegister::read(u64, std::span<u8> data) { std::ranges::fill(data, u8{0}); }

void Power::ResetRegister::write(u64, std::span<const u8> data) {
  if (data.front() == kResetValue) machine_.reboot_requested();
}

// WAK_STS of the status register is never set: there is no sleep to wake from.
void Power::SleepRegisters::read(u64, std::span<u8> data) { std::ranges::fill(data, u8{0}); }

void Power::SleepRegisters::write(u64 offset, std::span<const u8> data) {
  if (offset != 0) return;
  const u8 value = data.front();
  if ((value & kSleepEnable) != 0 && (value & kSleepTypeMask) == kSleepTypeOff << 2) {
    machine_.power_off_requested();
  }
}

// No output, and ready for a command.
void Power::KeyboardController::read(u64, std::span<u8> data) { std::ranges::fill(data, u8{0}); }

void Power::KeyboardController::write(u64, std::span<const u8> data) {
  if (data.front() == kPulseResetLine) machine_.reboot_requested();
}

// Only a read of the whole word takes the events: half of one would lose the other half's.
void Power::EventRegister::read(u64, std::span<u8> data) {
  std::ranges::fill(data, u8{0});
  if (data.size() != sizeof(le32)) return;
  const le32 events(power_.take_events());
  std::memcpy(data.data(), &events, sizeof events);
}

void Power::press_power_button() { raise(kPowerButton); }

// An edge for every event, also while an earlier one is unread: that one's edge may have come
// before the guest unmasked the line.
void Power::raise(EventBit event) {
  base::MutexLock lock(mutex_);
  state_.events |= event;
  irq_.pulse();
}

u32 Power::take_events() {
  base::MutexLock lock(mutex_);
  const u32 events = state_.events;
  state_.events = 0;
  return events;
}

void Power::timeline_changed(TimelineChange, const Generation& generation) {
  CHECK(memory_.write(generation_id_, generation));
  raise(kGenerationChanged);
}

void Power::reset() {
  base::MutexLock lock(mutex_);
  state_ = {};
}

PowerState Power::save() const {
  base::MutexLock lock(mutex_);
  return state_;
}

Result<void> Power::validate(const PowerState& state) const {
  if ((state.events & ~kAllEvents) != 0) {
    return make_error(ErrorKind::corrupt, "events {:#x} are unknown", state.events & ~kAllEvents);
  }
  return {};
}

Result<void> Power::restore(const PowerState& state) {
  TRY(validate(state));
  base::MutexLock lock(mutex_);
  state_ = state;
  if (state_.events != 0) irq_.pulse();
  return {};
}

}  // namespace devices
