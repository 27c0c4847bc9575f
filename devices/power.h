// Power: how the guest turns itself off or reboots, how the host asks it to, and how it learns that
// it was taken to another point in time.
//
// Four small register blocks, each a BusHandler of its own, because the address map places them:
//   reset_register()       1 byte   ACPI 6.5, 4.8.3.6 "Reset Register": kResetValue reboots
//   sleep_registers()      2 bytes  ACPI 6.5, 4.8.3.7 "Sleep Control and Status Registers"
//                                   (hardware-reduced): 0 control, 1 status
//   keyboard_controller()  1 byte   port 0x64 of an i8042: kPulseResetLine reboots. Linux uses it
//                                   when it does not try the reset register first.
//   event_register()       4 bytes  what the Generic Event Device's method reads: a word of
//                                   EventBit, which is 0 once it was read as a whole
// Each event, and restore() with events that were not read, pulses the line: the device's interrupt
// is an edge.
//
// The VM generation identifier is 16 bytes of guest RAM at an address the firmware tables name; it
// changes with every timeline change, and the guest is told by an event.
//
// Thread: all calls from any thread; the lock is a leaf but for the interrupt line.

#pragma once

#include <string>

#include "devices/bus.h"
#include "devices/device.h"
#include "devices/irq.h"
#include "vmm/base/mutex.h"
#include "vmm/memory/guest_memory.h"

namespace devices {

struct PowerState {
  u32 events = 0;  // EventBit

  static constexpr auto fields() {
    return std::tuple(base::field<1>("events", &PowerState::events));
  }
};

class Power final : public Device, public base::StatefulOf<PowerState> {
 public:
  static constexpr u8 kResetValue = 1;         // FADT RESET_VALUE
  static constexpr u8 kSleepTypeOff = 5;       // SLP_TYP of \_S5 in the DSDT
  static constexpr u8 kPulseResetLine = 0xfe;  // i8042 command

  enum EventBit : u32 {
    kPowerButton = 1u << 0,
    kGenerationChanged = 1u << 1,
  };

  // All outlive the device. `generation_id` is where the 16 bytes lie.
  // REQUIRES: they lie in RAM.
  Power(IrqLine& irq, MachineEvents& machine, memory::GuestMemory& memory, Gpa generation_id);

  BusHandler& reset_register() { return reset_register_; }
  BusHandler& sleep_registers() { return sleep_registers_; }
  BusHandler& keyboard_controller() { return keyboard_controller_; }
  BusHandler& event_register() { return event_register_; }

  void press_power_button();

  base::Stateful& stateful() override { return *this; }
  void reset() override;
  void timeline_changed(TimelineChange change, const Generation& generation) override;

  std::string state_name() const override { return "power"; }
  PowerState save() const override;
  Result<void> validate(const PowerState& state) const override;
  Result<void> restore(const PowerState& state) override;

 private:
  class ResetRegister final : public BusHandler {
   public:
    explicit ResetRegister(MachineEvents& machine) : machine_(machine) {}
    void read(u64 offset, std::span<u8> data) override;
    void write(u64 offset, std::span<const u8> data) override;

   private:
    MachineEvents& machine_;
  };
  class SleepRegisters final : public BusHandler {
   public:
    explicit SleepRegisters(MachineEvents& machine) : machine_(machine) {}
    void read(u64 offset, std::span<u8> data) override;
    void write(u64 offset, std::span<const u8> data) override;

   private:
    MachineEvents& machine_;
  };
  class KeyboardController final : public BusHandler {
   public:
    explicit KeyboardController(MachineEvents& machine) : machine_(machine) {}
    void read(u64 offset, std::span<u8> data) override;
    void write(u64 offset, std::span<const u8> data) override;

   private:
    MachineEvents& machine_;
  };
  class EventRegister final : public BusHandler {
   public:
    explicit EventRegister(Power& power) : power_(power) {}
    void read(u64 offset, std::span<u8> data) override;
    void write(u64, std::span<const u8>) override {}

   private:
    Power& power_;
  };

  void raise(EventBit event);
  u32 take_events();

  IrqLine& irq_;
  memory::GuestMemory& memory_;
  const Gpa generation_id_;
  ResetRegister reset_register_;
  SleepRegisters sleep_registers_;
  KeyboardController keyboard_controller_;
  EventRegister event_register_;
  mutable base::Mutex mutex_;
  PowerState state_ GUARDED_BY(mutex_);
};

}  // namespace devices
