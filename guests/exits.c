// Every way out of the guest that no device answers, one command each:
//
//   ports   unknown ports read all ones and swallow writes, in all widths and by string   PORTS ok
//   mmio    the same for unknown addresses, also across a page's end                      MMIO ok
//   fetch   runs code at an unknown address, which no KVM can emulate                     no answer
// and from the console's common commands: triple-fault, reset, hang, off.
//
// Failures: 1 a port, 2 a string of ports, 3 an address, 4 an access across two pages.

#include "guests/console.h"

// Free in the machine and on QEMU's microvm.
enum { UNKNOWN_PORT = 0x5a0 };
#define UNKNOWN_ADDRESS 0xe0000000ull

static void command_ports(char* arguments) {
  (void)arguments;
  out8(UNKNOWN_PORT, 1);
  out16(UNKNOWN_PORT, 2);
  out32(UNKNOWN_PORT, 3);
  expect_equal(1, "8-bit port", in8(UNKNOWN_PORT), 0xff);
  expect_equal(1, "16-bit port", in16(UNKNOWN_PORT), 0xffff);
  expect_equal(1, "32-bit port", in32(UNKNOWN_PORT), 0xffffffff);
  u8 bytes[16];
  void* to = bytes;
  u64 count = sizeof(bytes);
  __asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"(UNKNOWN_PORT) : "memory");
  for (u32 index = 0; index < sizeof(bytes); ++index) {
    expect_equal(2, "string of ports", bytes[index], 0xff);
  }
  const void* from = bytes;
  count = sizeof(bytes);
  __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(UNKNOWN_PORT) : "memory");
  put_line("PORTS ok");
}

static void command_mmio(char* arguments) {
  (void)arguments;
  mmio_write8(UNKNOWN_ADDRESS, 1);
  mmio_write16(UNKNOWN_ADDRESS, 2);
  mmio_write32(UNKNOWN_ADDRESS, 3);
  mmio_write64(UNKNOWN_ADDRESS, 4);
  expect_equal(3, "8-bit address", mmio_read8(UNKNOWN_ADDRESS), 0xff);
  expect_equal(3, "16-bit address", mmio_read16(UNKNOWN_ADDRESS), 0xffff);
  expect_equal(3, "32-bit address", mmio_read32(UNKNOWN_ADDRESS), 0xffffffff);
  expect_equal(3, "64-bit address", mmio_read64(UNKNOWN_ADDRESS), ~0ull);
  // One store, two exits: the second comes when the first is finished.
  u64 across = UNKNOWN_ADDRESS + 4096 - 4;
  mmio_write64(across, 0x1122334455667788);
  expect_equal(4, "64-bit across pages", mmio_read64(across), ~0ull);
  put_line("MMIO ok");
}

static void command_fetch(char* arguments) {
  (void)arguments;
  ((void (*)(void))UNKNOWN_ADDRESS)();
  put_line("FETCHED");
}

static const struct Command commands[] = {
    {"ports", command_ports},
    {"mmio", command_mmio},
    {"fetch", command_fetch},
    {0, 0},
};

void guest_start(void) { run_commands(commands); }
