#include "devices/serial.h"

#include <algorithm>

namespace devices {
namespace {

// Offsets from the base port. With the divisor latch visible, 0 and 1 are its halves.
enum Offset : u64 {
  kData = 0,               // R RBR, W THR; DLL
  kInterruptEnable = 1,    // IER; DLM
  kInterruptIdentity = 2,  // R IIR, W FCR
  kLineControl = 3,        // LCR
  kModemControl = 4,       // MCR
  kLineStatus = 5,         // LSR
  kModemStatus = 6,        // MSR
  kScratch = 7,            // SCR
};

// IER
constexpr u8 kEnableReceived = 0x01;
constexpr u8 kEnableTransmitEmpty = 0x02;
constexpr u8 kEnableLineStatus = 0x04;
constexpr u8 kEnableModemStatus = 0x08;
constexpr u8 kEnableAll = 0x0f;

// IIR: bits 3:0; bits 7:6 say that the FIFOs are on
constexpr u8 kCauseNone = 0x01;
constexpr u8 kCauseModemStatus = 0x00;
constexpr u8 kCauseTransmitEmpty = 0x02;
constexpr u8 kCauseReceived = 0x04;
constexpr u8 kCauseLineStatus = 0x06;
constexpr u8 kIdentityFifo = 0xc0;

// FCR
constexpr u8 kFifoEnable = 0x01;
constexpr u8 kFifoResetReceiver = 0x02;
constexpr u8 kFifoStays = 0xc1;

// LCR
constexpr u8 kDivisorLatch = 0x80;

// MCR
constexpr u8 kDataTerminalReady = 0x01;
constexpr u8 kRequestToSend = 0x02;
constexpr u8 kOut1 = 0x04;
constexpr u8 kOut2 = 0x08;
constexpr u8 kLoopback = 0x10;
constexpr u8 kModemControlBits = 0x1f;

// LSR
constexpr u8 kDataReady = 0x01;
constexpr u8 kOverrun = 0x02;
constexpr u8 kTransmitterEmpty = 0x60;  // THRE and TEMT: characters take no time

// MSR: the lines in bits 7:4, what changed since the last read in bits 3:0
constexpr u8 kClearToSend = 0x10;
constexpr u8 kDataSetReady = 0x20;
constexpr u8 kRingIndicator = 0x40;
constexpr u8 kCarrierDetect = 0x80;
constexpr u8 kModemDeltas = 0x0f;
constexpr u8 kRingDelta = 0x04;  // only the end of a ring counts (TERI)

u8 lines_of(u8 modem_control) {
  // Nobody hangs up on us: the host is always there.
  if ((modem_control & kLoopback) == 0) return kClearToSend | kDataSetReady | kCarrierDetect;
  u8 lines = 0;
  if ((modem_control & kRequestToSend) != 0) lines |= kClearToSend;
  if ((modem_control & kDataTerminalReady) != 0) lines |= kDataSetReady;
  if ((modem_control & kOut1) != 0) lines |= kRingIndicator;
  if ((modem_control & kOut2) != 0) lines |= kCarrierDetect;
  return lines;
}

}  // namespace

void Serial::read(u64 offset, std::span<u8> data) {
  // A wider access is that many byte accesses to the ports from here on, as on an ISA bus.
  for (u8& byte : data) byte = read_register(offset++);
}

void Serial::write(u64 offset, std::span<const u8> data) {
  for (const u8 byte : data) write_register(offset++, byte);
}

u8 Serial::read_register(u64 offset) {
  u8 value = 0xff;
  bool room = false;
  {
    base::MutexLock lock(mutex_);
    switch (offset) {
      case kData: value = is_divisor_visible() ? state_.divisor_low : read_receiver(); break;
      case kInterruptEnable:
        value = is_divisor_visible() ? state_.divisor_high : state_.interrupt_enable;
        break;
      case kInterruptIdentity: value = read_interrupt_identity(); break;
      case kLineControl: value = state_.line_control; break;
      case kModemControl: value = state_.modem_control; break;
      case kLineStatus: value = read_line_status(); break;
      case kModemStatus: value = read_modem_status(); break;
      case kScratch: value = state_.scratch; break;
      default: break;
    }
    drive_line();
    room = take_refusal();
  }
  if (room) sink_.input_room();
  return value;
}

void Serial::write_register(u64 offset, u8 value) {
  std::optional<u8> sent;
  bool room = false;
  {
    base::MutexLock lock(mutex_);
    switch (offset) {
      case kData:
        if (is_divisor_visible()) {
          state_.divisor_low = value;
        } else {
          sent = write_transmitter(value);
        }
        break;
      case kInterruptEnable:
        if (is_divisor_visible()) {
          state_.divisor_high = value;
        } else {
          write_interrupt_enable(value);
        }
        break;
      case kInterruptIdentity: write_fifo_control(value); break;
      case kLineControl: state_.line_control = value; break;
      case kModemControl: write_modem_control(value); break;
      case kScratch: state_.scratch = value; break;
      default: break;  // LSR and MSR are read-only
    }
    // The byte has left before another vCPU hears that the transmitter is empty.
    if (sent) sink_.write(*sent);
    drive_line();
    room = take_refusal();
  }
  if (room) sink_.input_room();
}

u8 Serial::read_receiver() {
  if (state_.received_count == 0) return 0;
  const u8 byte = state_.received[0];
  std::shift_left(state_.received.begin(), state_.received.end(), 1);
  state_.received[--state_.received_count] = 0;
  return byte;
}

// Reading it is the acknowledgement of "transmitter empty", if that is what it tells (table 4).
u8 Serial::read_interrupt_identity() {
  const u8 cause = pending_cause();
  if (cause == kCauseTransmitEmpty) state_.transmit_empty_pending = false;
  return has_fifo() ? cause | kIdentityFifo : cause;
}

u8 Serial::read_line_status() {
  const u8 received = state_.received_count != 0 ? kDataReady : u8{0};
  const u8 value = kTransmitterEmpty | received | state_.line_errors;
  state_.line_errors = 0;
  return value;
}

u8 Serial::read_modem_status() {
  const u8 value = modem_lines() | state_.modem_deltas;
  state_.modem_deltas = 0;
  return value;
}

// The byte to send, unless it went round the loop.
std::optional<u8> Serial::write_transmitter(u8 value) {
  state_.transmit_empty_pending = true;  // full and at once empty again
  if (!is_loopback()) return value;
  take_received(value);
  return std::nullopt;
}

// Enabling the cause while the transmitter is empty raises it: Linux's 8250 driver starts each
// transmission that way (and tests for chips that do not).
void Serial::write_interrupt_enable(u8 value) {
  value &= kEnableAll;
  const bool enabled = (value & ~state_.interrupt_enable & kEnableTransmitEmpty) != 0;
  if (enabled) state_.transmit_empty_pending = true;
  state_.interrupt_enable = value;
}

void Serial::write_fifo_control(u8 value) {
  const bool toggled = ((value ^ state_.fifo_control) & kFifoEnable) != 0;
  if (toggled || (value & kFifoResetReceiver) != 0) reset_receiver();
  // Without the enable bit the others are not programmed.
  state_.fifo_control = (value & kFifoEnable) != 0 ? value & kFifoStays : 0;
}

void Serial::write_modem_control(u8 value) {
  const u8 before = modem_lines();
  state_.modem_control = value & kModemControlBits;
  const u8 after = modem_lines();
  u8 deltas = static_cast<u8>((before ^ after) >> 4);
  if ((after & kRingIndicator) != 0) deltas &= static_cast<u8>(~kRingDelta);
  state_.modem_deltas |= deltas;
}

u64 Serial::receive(std::span<const u8> bytes) {
  base::MutexLock lock(mutex_);
  const u64 limit = is_loopback() ? 0 : has_fifo() ? SerialState::kFifoBytes : 1;
  u64 taken = 0;
  while (taken < bytes.size() && state_.received_count < limit) take_received(bytes[taken++]);
  refused_ = taken < bytes.size();
  drive_line();
  return taken;
}

void Serial::take_received(u8 byte) {
  const u8 limit = has_fifo() ? SerialState::kFifoBytes : u8{1};
  if (state_.received_count < limit) {
    state_.received[state_.received_count++] = byte;
    return;
  }
  state_.line_errors |= kOverrun;
  // With a FIFO the new byte is lost, without one the old (section 8.4, OE).
  if (!has_fifo()) state_.received[0] = byte;
}

void Serial::reset_receiver() {
  state_.received.fill(0);
  state_.received_count = 0;
}

bool Serial::has_fifo() const { return (state_.fifo_control & kFifoEnable) != 0; }
bool Serial::is_loopback() const { return (state_.modem_control & kLoopback) != 0; }
bool Serial::is_divisor_visible() const { return (state_.line_control & kDivisorLatch) != 0; }
u8 Serial::modem_lines() const { return lines_of(state_.modem_control); }

// The enabled cause of highest priority (table 4).
u8 Serial::pending_cause() const {
  const u8 enabled = state_.interrupt_enable;
  if ((enabled & kEnableLineStatus) != 0 && state_.line_errors != 0) return kCauseLineStatus;
  if ((enabled & kEnableReceived) != 0 && state_.received_count != 0) return kCauseReceived;
  if ((enabled & kEnableTransmitEmpty) != 0 && state_.transmit_empty_pending) {
    return kCauseTransmitEmpty;
  }
  if ((enabled & kEnableModemStatus) != 0 && state_.modem_deltas != 0) return kCauseModemStatus;
  return kCauseNone;
}

// Under the lock: two threads that drove it outside could leave the older level on the line.
void Serial::drive_line() {
  const IrqLevel level = pending_cause() == kCauseNone ? IrqLevel::low : IrqLevel::high;
  if (level == level_) return;
  level_ = level;
  irq_.set(level);
}

// Whether the refused sender should try again.
bool Serial::take_refusal() {
  if (!refused_ || is_loopback() || state_.received_count != 0) return false;
  refused_ = false;
  return true;
}

void Serial::reset() {
  base::MutexLock lock(mutex_);
  state_ = {};
  refused_ = false;
  drive_line();
}

SerialState Serial::save() const {
  base::MutexLock lock(mutex_);
  return state_;
}

Result<void> Serial::validate(const SerialState& state) const {
  const auto only = [](const char* name, u8 value, u8 allowed) -> Result<void> {
    if ((value & ~allowed) == 0) return {};
    return make_error(ErrorKind::corrupt, "{} {:#x} has bits outside {:#x}", name, value, allowed);
  };
  TRY(only("interrupt enable", state.interrupt_enable, kEnableAll));
  TRY(only("FIFO control", state.fifo_control, kFifoStays));
  TRY(only("modem control", state.modem_control, kModemControlBits));
  TRY(only("line errors", state.line_errors, kOverrun));
  TRY(only("modem deltas", state.modem_deltas, kModemDeltas));
  const bool fifo = (state.fifo_control & kFifoEnable) != 0;
  if (!fifo && state.fifo_control != 0) {
    return make_error(ErrorKind::corrupt, "FIFO trigger level without FIFO");
  }
  if (state.received_count > (fifo ? SerialState::kFifoBytes : 1)) {
    return make_error(ErrorKind::corrupt, "{} bytes received and unread", state.received_count);
  }
  for (u64 index = state.received_count; index < state.received.size(); ++index) {
    if (state.received[index] != 0) {
      return make_error(ErrorKind::corrupt, "a byte behind the end of the receive FIFO");
    }
  }
  return {};
}

Result<void> Serial::restore(const SerialState& state) {
  TRY(validate(state));
  {
    base::MutexLock lock(mutex_);
    state_ = state;
    refused_ = false;
    // Whatever the line was before, the interrupt controller has been restored under it: drive it
    // from scratch, through low, so that an edge-triggered input sees a pending cause again.
    irq_.set(IrqLevel::low);
    level_ = IrqLevel::low;
    drive_line();
  }
  // Who was refused on the abandoned timeline may try on this one.
  sink_.input_room();
  return {};
}

}  // namespace devices
