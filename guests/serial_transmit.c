// Transmits by interrupt alone: each "transmitter empty" interrupt sends the next character, nothing
// else does. A snapshot in mid-transmit that loses the interrupt silences it for ever.
//
// Prints READY, then SENT n lines without end, numbered without a gap. Any input ends it: STOPPED.

#include "guests/interrupts.h"

enum {
  SERIAL_VECTOR = 0x24,
  INTERRUPT_ENABLE = 1,
  INTERRUPT_IDENTITY = 2,
  MODEM_CONTROL = 4,
  LINE_STATUS = 5,
  TRANSMITTER_EMPTY = 2,
  OUT2 = 8,
  LINE_BYTES = 14,
};

static u64 line_number;
static u32 position;
static u8 line[LINE_BYTES + 1];
static volatile u64 sent;

static void format_line(void) {
  u64 value = line_number++;
  memcpy(line, "SENT ", 5);
  for (int digit = 12; digit >= 5; --digit) {
    line[digit] = (u8)('0' + value % 10);
    value /= 10;
  }
  line[13] = '\n';
}

// At CPL 0. Reading the identity register acknowledges the condition.
static void transmitter_empty(void) {
  in8(PLATFORM_COM1 + INTERRUPT_IDENTITY);
  if (!(in8(PLATFORM_COM1 + LINE_STATUS) & 0x20)) {
    return;
  }
  if (position == LINE_BYTES) {
    position = 0;
    format_line();
  }
  out8(PLATFORM_COM1, line[position++]);
  ++sent;
}

void guest_start(void) {
  put_line(GUEST_READY_WORD);
  lapic_enable();
  format_line();
  handle_interrupt(SERIAL_VECTOR, transmitter_empty);
  ioapic_route(PLATFORM_COM1_IRQ, SERIAL_VECTOR, TRIGGER_EDGE);
  out8(PLATFORM_COM1 + MODEM_CONTROL, OUT2);
  // With the transmitter idle this raises the first interrupt.
  out8(PLATFORM_COM1 + INTERRUPT_ENABLE, TRANSMITTER_EMPTY);
  while (!char_waiting()) {
    halt();
  }
  out8(PLATFORM_COM1 + INTERRUPT_ENABLE, 0);
  put_line("\nSTOPPED");
  guest_exit(0);
}
