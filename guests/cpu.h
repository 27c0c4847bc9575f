// What C cannot say: ports, the time stamp counter, and the calls to CPL 0 (start.S, kernel_call).

#ifndef GUESTS_CPU_H_
#define GUESTS_CPU_H_

#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

static inline void out8(u16 port, u8 value) {
  __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port) : "memory");
}
static inline void out16(u16 port, u16 value) {
  __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port) : "memory");
}
static inline void out32(u16 port, u32 value) {
  __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port) : "memory");
}
static inline u8 in8(u16 port) {
  u8 value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
static inline u16 in16(u16 port) {
  u16 value;
  __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
static inline u32 in32(u16 port) {
  u32 value;
  __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}

// One mov each, never merged or split: device registers.
static inline u8 mmio_read8(u64 address) { return *(volatile u8*)address; }
static inline u16 mmio_read16(u64 address) { return *(volatile u16*)address; }
static inline u32 mmio_read32(u64 address) { return *(volatile u32*)address; }
static inline u64 mmio_read64(u64 address) { return *(volatile u64*)address; }
static inline void mmio_write8(u64 address, u8 value) { *(volatile u8*)address = value; }
static inline void mmio_write16(u64 address, u16 value) { *(volatile u16*)address = value; }
static inline void mmio_write32(u64 address, u32 value) { *(volatile u32*)address = value; }
static inline void mmio_write64(u64 address, u64 value) { *(volatile u64*)address = value; }

static inline u64 read_tsc(void) {
  u32 low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  return ((u64)high << 32) | low;
}
static inline void pause(void) { __asm__ volatile("pause" ::: "memory"); }
static inline void barrier(void) { __asm__ volatile("mfence" ::: "memory"); }
enum KernelCall {
  KERNEL_HALT = 0,
  KERNEL_READ_MSR = 1,
  KERNEL_WRITE_MSR = 2,
  KERNEL_LOAD_CR3 = 3,
  KERNEL_INVALIDATE_PAGE = 4,
  KERNEL_TRIPLE_FAULT = 5,
  KERNEL_HALT_FOR_EVER = 6,
  KERNEL_READ_CR3 = 7,
  KERNEL_INTERRUPTS_ON = 8,
  KERNEL_INTERRUPTS_OFF = 9,
  KERNEL_CPUID = 10,
};

static inline u64 kernel_call(enum KernelCall number, u64 first, u64 second) {
  u64 result;
  __asm__ volatile("ud2"
                   : "=a"(result)
                   : "a"((u64)number), "D"(first), "S"(second)
                   : "memory", "cc");
  return result;
}
static inline void interrupts_on(void) { kernel_call(KERNEL_INTERRUPTS_ON, 0, 0); }
static inline void interrupts_off(void) { kernel_call(KERNEL_INTERRUPTS_OFF, 0, 0); }
// Sleeps until one interrupt has been handled. The caller has interrupts off, so that one which
// arrives after its last look still wakes it.
static inline void halt(void) { kernel_call(KERNEL_HALT, 0, 0); }
static inline u64 read_msr(u32 index) { return kernel_call(KERNEL_READ_MSR, index, 0); }
static inline void write_msr(u32 index, u64 value) { kernel_call(KERNEL_WRITE_MSR, index, value); }
static inline void load_cr3(u64 value) { kernel_call(KERNEL_LOAD_CR3, value, 0); }
static inline u64 read_cr3(void) { return kernel_call(KERNEL_READ_CR3, 0, 0); }
static inline void invalidate_page(u64 address) { kernel_call(KERNEL_INVALIDATE_PAGE, address, 0); }

static inline void cpuid(u32 leaf, u32 registers[4]) {
  kernel_call(KERNEL_CPUID, leaf, (u64)registers);
}

#endif  // GUESTS_CPU_H_
