#include "guests/interrupts.h"

enum {
  PIC_PRIMARY_DATA = 0x21,
  PIC_SECONDARY_DATA = 0xa1,
  PIT_CHANNEL_0 = 0x40,
  PIT_CHANNEL_2 = 0x42,
  PIT_COMMAND = 0x43,
  SPEAKER = 0x61,
  PIT_HERTZ = 1193182,
  IOAPIC_SELECT = 0x00,
  IOAPIC_WINDOW = 0x10,
  IOAPIC_REDIRECTION = 0x10,
  SPURIOUS_VECTOR = 0xff,
};

extern const char trampoline[];
extern const char trampoline_end[];
extern volatile u32 processor_count;

static InterruptHandler* handlers[256];

void handle_interrupt(u8 vector, InterruptHandler* handler) { handlers[vector] = handler; }

// From start.S, at CPL 0.
void interrupt_arrived(u64 vector, u64 error_code, const u64* frame) {
  if (handlers[vector]) {
    handlers[vector]();
  } else if (vector < 32) {
    put_pair("EXCEPTION", vector);
    put_pair("error-code", error_code);
    u64 address;
    __asm__ volatile("mov %%cr2, %0" : "=r"(address));
    put_text("rip cs flags rsp cr2");
    for (int word = 0; word < 5; ++word) {
      put_char(' ');
      put_hex(word < 4 ? frame[word] : address);
    }
    put_char('\n');
    put_pair(GUEST_EXIT_WORD, 100 + vector);
    out8(PLATFORM_SLEEP_CONTROL_PORT, PLATFORM_SLEEP_CONTROL_POWER_OFF);
    for (;;) {
      __asm__ volatile("hlt");
    }
  }
  if (vector >= 32 && vector != SPURIOUS_VECTOR) {
    lapic_write(LAPIC_EOI, 0);
  }
}

void lapic_enable(void) {
  out8(PIC_PRIMARY_DATA, 0xff);
  out8(PIC_SECONDARY_DATA, 0xff);
  lapic_write(LAPIC_SPURIOUS, 0x100 | SPURIOUS_VECTOR);
}

void ioapic_route(u32 gsi, u8 vector, enum Trigger trigger) {
  u32 entry = IOAPIC_REDIRECTION + 2 * gsi;
  mmio_write32(PLATFORM_IOAPIC + IOAPIC_SELECT, entry + 1);
  mmio_write32(PLATFORM_IOAPIC + IOAPIC_WINDOW, 0);
  mmio_write32(PLATFORM_IOAPIC + IOAPIC_SELECT, entry);
  mmio_write32(PLATFORM_IOAPIC + IOAPIC_WINDOW,
               vector | (trigger == TRIGGER_LEVEL ? 1u << 15 : 0));
}

void pit_start(u32 hertz) {
  u32 count = PIT_HERTZ / hertz;
  out8(PIT_COMMAND, 0x34);
  out8(PIT_CHANNEL_0, (u8)count);
  out8(PIT_CHANNEL_0, (u8)(count >> 8));
}

void send_interrupt(u32 apic_id, u8 vector) {
  lapic_write(LAPIC_COMMAND_HIGH, apic_id << 24);
  lapic_write(LAPIC_COMMAND_LOW, 0x4000 | vector);
}

// SDM vol. 3, 9.4.4 "MP Initialization Example": to all but this one.
u32 start_processors(u32 expected, u64 milliseconds) {
  memcpy((void*)GUEST_TRAMPOLINE, trampoline, (size_t)(trampoline_end - trampoline));
  u64 end = read_tsc() + milliseconds * tsc_per_millisecond();
  lapic_write(LAPIC_COMMAND_LOW, 0xc4500);
  wait_milliseconds(1);
  for (int times = 0; times < 2; ++times) {
    lapic_write(LAPIC_COMMAND_LOW, 0xc4600 | (GUEST_TRAMPOLINE >> 12));
    wait_milliseconds(1);
  }
  while (processor_count < expected && read_tsc() < end) {
    pause();
  }
  return processor_count;
}

// KVM's leaf 0x40000010 gives kHz where the VMM passes it on; else 10 ms of PIT channel 2.
u64 tsc_per_millisecond(void) {
  static u64 ticks;
  if (ticks) {
    return ticks;
  }
  u32 registers[4];
  cpuid(0x40000000, registers);
  if (registers[0] >= 0x40000010 && registers[0] < 0x40001000) {
    cpuid(0x40000010, registers);
    ticks = registers[0];
  }
  if (!ticks) {
    u32 count = PIT_HERTZ / 100;
    out8(SPEAKER, (in8(SPEAKER) & ~2) | 1);
    out8(PIT_COMMAND, 0xb0);
    out8(PIT_CHANNEL_2, (u8)count);
    out8(PIT_CHANNEL_2, (u8)(count >> 8));
    u64 start = read_tsc();
    // A machine without the port reads all ones: the wait ends at once, and the guess below holds.
    while (!(in8(SPEAKER) & 0x20)) {
    }
    ticks = (read_tsc() - start) / 10;
  }
  if (ticks < 100000) {
    ticks = 2500000;
  }
  return ticks;
}

void wait_milliseconds(u64 milliseconds) {
  u64 end = read_tsc() + milliseconds * tsc_per_millisecond();
  while (read_tsc() < end) {
    pause();
  }
}
