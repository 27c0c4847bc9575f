// All processors make progress: each counts, writes its own page and ticks by its own timer, and
// answers interrupts from the first.
//
//   start N      starts the others until N run            STARTED n
//   progress     every processor moved within a second    PROGRESS n, or STUCK processor
//   ipi          each answers an interrupt in a second    ANSWERED n, or SILENT processor
//   spin 0|1     whether they sleep between ticks         SPIN n
//   verify       every page holds what its owner counted  PAGES n, or WRONG processor

#include "guests/console.h"

enum { TIMER_VECTOR = 0x30, CALL_VECTOR = 0x31, LAPIC_COUNT = 625000 };

struct Processor {
  volatile u64 count;
  volatile u64 answers;
  volatile u64 ticks;
  u8 padding[40];
};

static struct Processor processors[GUEST_MAXIMUM_CPUS] __attribute__((aligned(64)));
static volatile int spin;
static u32 running = 1;

static u64 own_page(u64 processor) { return GUEST_ARENA + processor * 4096; }
static u32 own_number(void) { return lapic_read(LAPIC_ID) >> 24; }

// At CPL 0.
static void timer_ticked(void) { ++processors[own_number()].ticks; }
static void called(void) { ++processors[own_number()].answers; }

// Processors number themselves in the order in which they come; everything here goes by APIC ID.
void secondary_start(u64 order) {
  (void)order;
  lapic_enable();
  u32 self = own_number();
  lapic_write(LAPIC_TIMER_DIVIDE, 3);
  lapic_write(LAPIC_TIMER, TIMER_VECTOR | LAPIC_TIMER_PERIODIC);
  lapic_write(LAPIC_TIMER_INITIAL, LAPIC_COUNT);
  for (;;) {
    u64 count = processors[self].count + 1;
    *(volatile u64*)own_page(self) = count;
    barrier();
    processors[self].count = count;
    if (spin) {
      // A window in which interrupts arrive without a sleep.
      interrupts_on();
      pause();
      interrupts_off();
    } else {
      halt();
    }
  }
}

static void command_start(char* arguments) {
  running = start_processors((u32)next_number(&arguments, 2), 2000);
  put_pair("STARTED", running);
}

static u64 second_from_now(void) { return read_tsc() + 1000 * tsc_per_millisecond(); }

static void command_progress(char* arguments) {
  (void)arguments;
  u64 counts[GUEST_MAXIMUM_CPUS], ticks[GUEST_MAXIMUM_CPUS];
  for (u32 processor = 1; processor < running; ++processor) {
    counts[processor] = processors[processor].count;
    ticks[processor] = processors[processor].ticks;
  }
  u64 end = second_from_now();
  for (u32 processor = 1; processor < running; ++processor) {
    while (processors[processor].count < counts[processor] + 3 ||
           processors[processor].ticks < ticks[processor] + 3) {
      if (read_tsc() > end) {
        put_pair("STUCK", processor);
        return;
      }
      pause();
    }
  }
  put_pair("PROGRESS", running);
}

static void command_ipi(char* arguments) {
  (void)arguments;
  u64 end = second_from_now();
  for (u32 processor = 1; processor < running; ++processor) {
    u64 answers = processors[processor].answers;
    send_interrupt(processor, CALL_VECTOR);
    while (processors[processor].answers == answers) {
      if (read_tsc() > end) {
        put_pair("SILENT", processor);
        return;
      }
      pause();
    }
  }
  put_pair("ANSWERED", running);
}

static void command_spin(char* arguments) {
  spin = (int)next_number(&arguments, 1);
  put_pair("SPIN", (u64)spin);
}

// A page is written before its count, and is at most one ahead.
static void command_verify(char* arguments) {
  (void)arguments;
  for (u32 processor = 1; processor < running; ++processor) {
    u64 before = processors[processor].count;
    barrier();
    u64 page = *(volatile u64*)own_page(processor);
    barrier();
    u64 after = processors[processor].count;
    if (page < before || page > after + 1) {
      put_pair("WRONG", processor);
      return;
    }
  }
  put_pair("PAGES", running);
}

static const struct Command commands[] = {
    {"start", command_start},   {"progress", command_progress}, {"ipi", command_ipi},
    {"spin", command_spin},     {"verify", command_verify},     {0, 0},
};

void guest_start(void) {
  handle_interrupt(TIMER_VECTOR, timer_ticked);
  handle_interrupt(CALL_VECTOR, called);
  run_commands(commands);
}
