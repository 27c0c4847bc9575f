// Timers that must not be lost: the local APIC's in each of its modes, and the PIT. Two sources run at
// 100 Hz and wake the guest; each is watched by the other.
//
//   periodic | one-shot | deadline   the mode of the local APIC's timer        MODE name
//   check                            10 ticks of each source within a second   TICKS lapic N pit N,
//                                    or LOST lapic / LOST pit
//   run                              prints TICKS every 50, LOST when a source is silent for half a
//                                    second, until a character arrives

#include "guests/console.h"

enum { LAPIC_VECTOR = 0x30, PIT_VECTOR = 0x31, HERTZ = 100, CHECK_TICKS = 10 };

static volatile u64 lapic_ticks;
static volatile u64 pit_ticks;
static volatile u32 mode = LAPIC_TIMER_PERIODIC;
static u32 lapic_count;      // of the timer's own clock, for one period
static u64 deadline_period;  // of the TSC

// Runs at CPL 0.
static void rearm(void) {
  if (mode == LAPIC_TIMER_ONE_SHOT) {
    lapic_write(LAPIC_TIMER_INITIAL, lapic_count);
  } else if (mode == LAPIC_TIMER_DEADLINE) {
    u64 deadline = read_tsc() + deadline_period;
    __asm__ volatile("wrmsr" ::"c"(MSR_TSC_DEADLINE), "a"((u32)deadline),
                     "d"((u32)(deadline >> 32)));
  }
}

static void lapic_ticked(void) {
  ++lapic_ticks;
  rearm();
}

static void pit_ticked(void) { ++pit_ticks; }

static void set_mode(u32 new_mode) {
  mode = new_mode;
  lapic_write(LAPIC_TIMER, LAPIC_VECTOR | new_mode);
  if (new_mode == LAPIC_TIMER_DEADLINE) {
    write_msr(MSR_TSC_DEADLINE, read_tsc() + deadline_period);
  } else {
    lapic_write(LAPIC_TIMER_INITIAL, lapic_count);
  }
}

// How far the timer counts in a period, against the TSC; divided by 16.
static void calibrate(void) {
  deadline_period = tsc_per_millisecond() * 1000 / HERTZ;
  lapic_write(LAPIC_TIMER_DIVIDE, 3);
  lapic_write(LAPIC_TIMER, LAPIC_MASKED);
  lapic_write(LAPIC_TIMER_INITIAL, 0xffffffff);
  wait_milliseconds(10);
  lapic_count = (0xffffffff - lapic_read(LAPIC_TIMER_CURRENT)) * (1000 / HERTZ) / 10;
}

static void put_ticks(void) {
  put_text("TICKS lapic ");
  put_number(lapic_ticks);
  put_pair(" pit", pit_ticks);
}

static void command_check(char* arguments) {
  (void)arguments;
  u64 lapic_goal = lapic_ticks + CHECK_TICKS;
  u64 pit_goal = pit_ticks + CHECK_TICKS;
  u64 end = read_tsc() + 1000 * tsc_per_millisecond();
  interrupts_on();
  while ((lapic_ticks < lapic_goal || pit_ticks < pit_goal) && read_tsc() < end) {
    pause();
  }
  interrupts_off();
  if (lapic_ticks < lapic_goal) {
    put_pair("LOST lapic", lapic_goal - lapic_ticks);
  } else if (pit_ticks < pit_goal) {
    put_pair("LOST pit", pit_goal - pit_ticks);
  } else {
    put_ticks();
  }
}

static void command_run(char* arguments) {
  (void)arguments;
  // A source is silent when the other one has ticked fifty times meanwhile. Not by the time stamp
  // counter: where it cannot be set, it jumps ahead when the guest is taken back.
  u64 lapic_seen = lapic_ticks, pit_then = pit_ticks;
  u64 pit_seen = pit_ticks, lapic_then = lapic_ticks;
  u64 printed = lapic_ticks;
  while (!char_waiting()) {
    halt();
    if (lapic_ticks != lapic_seen) {
      lapic_seen = lapic_ticks;
      pit_then = pit_ticks;
    } else if (pit_ticks - pit_then > 50) {
      put_line("LOST lapic");
      pit_then = pit_ticks;
    }
    if (pit_ticks != pit_seen) {
      pit_seen = pit_ticks;
      lapic_then = lapic_ticks;
    } else if (lapic_ticks - lapic_then > 50) {
      put_line("LOST pit");
      lapic_then = lapic_ticks;
    }
    if (lapic_ticks - printed >= 50) {
      printed = lapic_ticks;
      put_ticks();
    }
  }
  put_line("STOPPED");
}

static void command_periodic(char* arguments) {
  (void)arguments;
  set_mode(LAPIC_TIMER_PERIODIC);
  put_line("MODE periodic");
}
static void command_one_shot(char* arguments) {
  (void)arguments;
  set_mode(LAPIC_TIMER_ONE_SHOT);
  put_line("MODE one-shot");
}
// CPUID.01H:ECX bit 24.
static void command_deadline(char* arguments) {
  (void)arguments;
  u32 registers[4];
  cpuid(1, registers);
  if (!(registers[2] & (1u << 24))) {
    put_line("MODE absent");
    return;
  }
  set_mode(LAPIC_TIMER_DEADLINE);
  put_line("MODE deadline");
}

static const struct Command commands[] = {
    {"periodic", command_periodic},
    {"one-shot", command_one_shot},
    {"deadline", command_deadline},
    {"check", command_check},
    {"run", command_run},
    {0, 0},
};

void guest_start(void) {
  lapic_enable();
  calibrate();
  handle_interrupt(LAPIC_VECTOR, lapic_ticked);
  handle_interrupt(PIT_VECTOR, pit_ticked);
  // The PIT drives pin 0 of the IOAPIC (KVM's own routing), or 2 as on a PC (QEMU's).
  ioapic_route(0, PIT_VECTOR, TRIGGER_EDGE);
  ioapic_route(2, PIT_VECTOR, TRIGGER_EDGE);
  pit_start(HERTZ);
  set_mode(LAPIC_TIMER_PERIODIC);
  run_commands(commands);
}
