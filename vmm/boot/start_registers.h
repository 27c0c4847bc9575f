// StartRegisters: what the first vCPU (the BSP) holds when the guest starts. Plain values, so that
// this folder knows no KVM; the machine copies them into the vCPU. All other registers are zero or
// as after reset. The other vCPUs wait for INIT and SIPI and need nothing from here.

#pragma once

#include "vmm/base/types.h"
#include "vmm/memory/guest_memory.h"

namespace boot {

enum class StartMode : u8 {
  long_mode_64,       // the kernel's 64-bit entry; paging on, everything below 4 GiB mapped 1:1
  protected_mode_32,  // PVH: 32-bit, flat segments, no paging
};

// A segment register with its hidden part (SDM volume 3, "Segment Descriptors"). Present, DPL 0.
struct Segment {
  u64 base = 0;
  u32 limit = 0;  // in bytes, the granularity applied
  u16 selector = 0;
  u8 type = 0;                // descriptor bits 43:40
  bool code_or_data = false;  // S; false for the task state segment
  bool operand_32 = false;    // D/B
  bool long_mode = false;     // L
  bool granular_4k = false;   // G
};

struct StartRegisters {
  StartMode mode = StartMode::long_mode_64;
  u64 rip = 0;
  u64 rsp = 0;
  u64 rsi = 0;  // long mode: the zero page
  u64 rbx = 0;  // PVH: the start info
  u64 rflags = 0;
  u64 cr0 = 0;
  u64 cr3 = 0;
  u64 cr4 = 0;
  u64 efer = 0;
  Segment code;  // CS
  Segment data;  // DS, ES, FS, GS and SS
  Segment task;  // TR
  u64 gdt_base = 0;
  u16 gdt_limit = 0;
};

// Write what `entry` starts with (GDT, and page tables in long mode) to its place in layout.h.
// REQUIRES: RAM of at least 1 MiB, which every GuestMemory has.
StartRegisters prepare_long_mode(memory::GuestMemory& memory, u64 entry);
StartRegisters prepare_protected_mode(memory::GuestMemory& memory, u32 entry);

}  // namespace boot
