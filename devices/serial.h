// Serial: a 16550A UART, the guest's console.
//
// What the guest writes goes to a sink at once, so the transmitter is always empty; what the host
// sends waits in the 16-byte receive FIFO. The interrupt line is level-driven: it is high exactly
// while an enabled cause is pending. The cause "transmitter empty" is kept in State until the guest
// has read it, so that a snapshot taken in mid-output goes on sending after a restore.
//
// National Semiconductor PC16550D data sheet, section 8 "Registers". Differences that no driver
// sees: characters take no time, and received data interrupts at once instead of after the trigger
// level or the timeout.
//
// Thread: all calls from any thread. The lock is a leaf but for the interrupt line and the sink, which
// are called with it.

#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>

#include "devices/bus.h"
#include "devices/device.h"
#include "devices/irq.h"
#include "vmm/base/mutex.h"

namespace devices {

// Where output goes. Must not block: a guest that writes for ever must not be stopped by a reader
// that does not read.
class SerialSink {
 public:
  virtual ~SerialSink() = default;
  virtual void write(u8 byte) = 0;
  // receive() had refused bytes, and there is room again. May be called from a vCPU thread.
  virtual void input_room() {}
};

struct SerialState {
  static constexpr u32 kFifoBytes = 16;

  u8 interrupt_enable = 0;              // IER
  u8 fifo_control = 0;                  // FCR, the bits that stay: enable and trigger level
  u8 line_control = 0;                  // LCR
  u8 modem_control = 0;                 // MCR
  u8 line_errors = 0;                   // LSR, the bits that stay until read: overrun
  u8 modem_deltas = 0;                  // MSR, bits 0 to 3
  u8 scratch = 0;                       // SCR
  u8 divisor_low = 0;                   // DLL
  u8 divisor_high = 0;                  // DLM
  bool transmit_empty_pending = false;  // THR became empty and IIR has not told so yet
  u8 received_count = 0;
  std::array<u8, kFifoBytes> received{};  // oldest first; zero from received_count on

  static constexpr auto fields() {
    using S = SerialState;
    return std::tuple(base::field<1>("interrupt_enable", &S::interrupt_enable),
                      base::field<2>("fifo_control", &S::fifo_control),
                      base::field<3>("line_control", &S::line_control),
                      base::field<4>("modem_control", &S::modem_control),
                      base::field<5>("line_errors", &S::line_errors),
                      base::field<6>("modem_deltas", &S::modem_deltas),
                      base::field<7>("scratch", &S::scratch),
                      base::field<8>("divisor_low", &S::divisor_low),
                      base::field<9>("divisor_high", &S::divisor_high),
                      base::field<10>("transmit_empty_pending", &S::transmit_empty_pending),
                      base::field<11>("received_count", &S::received_count),
                      base::field<12>("received", &S::received));
  }
};

class Serial final : public Device, public BusHandler, public base::StatefulOf<SerialState> {
 public:
  static constexpr u64 kPortCount = 8;

  // Both outlive the device.
  Serial(IrqLine& irq, SerialSink& sink) : irq_(irq), sink_(sink) {}

  // Puts bytes into the receive FIFO; returns how many of the first it took. The caller keeps the
  // rest until input_room().
  u64 receive(std::span<const u8> bytes);

  void read(u64 offset, std::span<u8> data) override;
  void write(u64 offset, std::span<const u8> data) override;

  base::Stateful& stateful() override { return *this; }
  void reset() override;

  std::string state_name() const override { return "serial"; }
  SerialState save() const override;
  Result<void> validate(const SerialState& state) const override;
  Result<void> restore(const SerialState& state) override;

 private:
  enum class Room : u8 { no, yes };

  u8 read_register(u64 offset);
  void write_register(u64 offset, u8 value);
  u8 read_receiver() REQUIRES_LOCK(mutex_);
  u8 read_interrupt_identity() REQUIRES_LOCK(mutex_);
  u8 read_line_status() REQUIRES_LOCK(mutex_);
  u8 read_modem_status() REQUIRES_LOCK(mutex_);
  std::optional<u8> write_transmitter(u8 value) REQUIRES_LOCK(mutex_);
  void write_interrupt_enable(u8 value) REQUIRES_LOCK(mutex_);
  void write_fifo_control(u8 value) REQUIRES_LOCK(mutex_);
  void write_modem_control(u8 value) REQUIRES_LOCK(mutex_);

  bool has_fifo() const REQUIRES_LOCK(mutex_);
  bool is_loopback() const REQUIRES_LOCK(mutex_);
  bool is_divisor_visible() const REQUIRES_LOCK(mutex_);
  u8 modem_lines() const REQUIRES_LOCK(mutex_);
  void take_received(u8 byte) REQUIRES_LOCK(mutex_);
  void reset_receiver() REQUIRES_LOCK(mutex_);
  u8 pending_cause() const REQUIRES_LOCK(mutex_);
  void drive_line() REQUIRES_LOCK(mutex_);
  bool take_refusal() REQUIRES_LOCK(mutex_);

  IrqLine& irq_;
  SerialSink& sink_;
  mutable base::Mutex mutex_;
  SerialState state_ GUARDED_BY(mutex_);
  // Derived from state_; driven again by restore().
  IrqLevel level_ GUARDED_BY(mutex_) = IrqLevel::low;
  // receive() refused bytes since the last input_room(). Not State: the host's side of the wire is
  // not rewound, and restore() calls input_room() in any case.
  bool refused_ GUARDED_BY(mutex_) = false;
};

}  // namespace devices
