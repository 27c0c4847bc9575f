// Floods the serial port without looking at its line status. "flood BYTES [0]" writes a counted
// pattern that the test can check byte for byte (line numbers of eight digits), then FLOODED n.

#include "guests/console.h"

static void command_flood(char* arguments) {
  u64 lines = next_number(&arguments, 65536) / 9;
  for (u64 line = 0; line < lines; ++line) {
    u64 divisor = 10000000;
    for (int digit = 0; digit < 8; ++digit) {
      out8(PLATFORM_COM1, (u8)('0' + line / divisor % 10));
      divisor /= 10;
    }
    out8(PLATFORM_COM1, '\n');
  }
  put_pair("FLOODED", lines);
}

static const struct Command commands[] = {{"flood", command_flood}, {0, 0}};

void guest_start(void) { run_commands(commands); }
