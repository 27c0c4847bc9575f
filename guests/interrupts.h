// Interrupts: handlers by vector, the local APIC, the I/O APIC, the PIT as a source, and the start of
// other processors.
//
// Handlers run at CPL 0, where an instruction may cost a microsecond: count, acknowledge, return.

#ifndef GUESTS_INTERRUPTS_H_
#define GUESTS_INTERRUPTS_H_

#include "guests/lib.h"

enum LapicRegister {
  LAPIC_ID = 0x20,
  LAPIC_EOI = 0xb0,
  LAPIC_SPURIOUS = 0xf0,
  LAPIC_COMMAND_LOW = 0x300,
  LAPIC_COMMAND_HIGH = 0x310,
  LAPIC_TIMER = 0x320,
  LAPIC_TIMER_INITIAL = 0x380,
  LAPIC_TIMER_CURRENT = 0x390,
  LAPIC_TIMER_DIVIDE = 0x3e0,
};
// SDM vol. 3, 11.5.1 "Local Vector Table".
enum {
  LAPIC_TIMER_ONE_SHOT = 0,
  LAPIC_TIMER_PERIODIC = 1 << 17,
  LAPIC_TIMER_DEADLINE = 2 << 17,
  LAPIC_MASKED = 1 << 16,
  MSR_TSC_DEADLINE = 0x6e0,
};

typedef void InterruptHandler(void);

// Called at CPL 0 with interrupts off; the end of interrupt is signalled afterwards.
void handle_interrupt(u8 vector, InterruptHandler* handler);

static inline u32 lapic_read(enum LapicRegister offset) {
  return mmio_read32(PLATFORM_LAPIC + (u64)offset);
}
static inline void lapic_write(enum LapicRegister offset, u32 value) {
  mmio_write32(PLATFORM_LAPIC + (u64)offset, value);
}

// Masks both PICs and enables this processor's local APIC. Once on each processor.
void lapic_enable(void);
// Edge-triggered, active high, to processor 0; or level-triggered.
enum Trigger { TRIGGER_EDGE, TRIGGER_LEVEL };
void ioapic_route(u32 gsi, u8 vector, enum Trigger trigger);

// PIT channel 0, mode 2, at `hertz`; its output is GSI 2 (or 0: route both).
void pit_start(u32 hertz);

void send_interrupt(u32 apic_id, u8 vector);
// INIT, SIPI, SIPI to everyone else; returns the number of processors that came, this one included,
// once it is `expected` or `milliseconds` by the TSC have passed.
u32 start_processors(u32 expected, u64 milliseconds);

// TSC ticks in a millisecond, measured against the PIT's channel 2 or told by KVM.
u64 tsc_per_millisecond(void);
void wait_milliseconds(u64 milliseconds);
// KVM's paravirtual clock (clock.c), started at the first call.
u64 clock_nanoseconds(void);

#endif  // GUESTS_INTERRUPTS_H_
