// KVM's paravirtual clock: Linux, Documentation/virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW.

#include "guests/interrupts.h"

enum { MSR_SYSTEM_TIME = 0x4b564d01, CLOCK_ENABLED = 1 };

struct ClockPage {
  u32 version;  // odd while it is being written
  u32 pad;
  u64 tsc_timestamp;
  u64 system_time;
  u32 tsc_to_system_mul;
  int8_t tsc_shift;
  u8 flags;
  u8 padding[2];
};

static volatile struct ClockPage clock_page __attribute__((aligned(64)));
static int clock_started;

u64 clock_nanoseconds(void) {
  if (!clock_started) {
    write_msr(MSR_SYSTEM_TIME, (u64)&clock_page | CLOCK_ENABLED);
    clock_started = 1;
  }
  for (;;) {
    u32 version = clock_page.version;
    barrier();
    u64 ticks = read_tsc() - clock_page.tsc_timestamp;
    ticks = clock_page.tsc_shift < 0 ? ticks >> -clock_page.tsc_shift : ticks << clock_page.tsc_shift;
    u64 time =
        clock_page.system_time + (u64)(((unsigned __int128)ticks * clock_page.tsc_to_system_mul) >> 32);
    barrier();
    if (!(version & 1) && version == clock_page.version) {
      return time;
    }
  }
}
