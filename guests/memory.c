// Which RAM there is (the PVH start info's memory map) and the tables that map what lies above 4 GiB.

#include "guests/lib.h"

// Xen's include/public/arch-x86/hvm/start_info.h, version 1.
struct StartInfo {
  u32 magic;
  u32 version;
  u32 flags;
  u32 module_count;
  u64 module_list;
  u64 command_line;
  u64 rsdp;
  u64 memory_map;
  u32 memory_map_entries;
  u32 reserved;
};
struct MemoryMapEntry {
  u64 address;
  u64 bytes;
  u32 type;  // 1 is RAM
  u32 reserved;
};

enum { RAM_TYPE = 1, TABLE_FLAGS = 7, LARGE_PAGE_FLAGS = 0xe7 };

extern u64 start_info;
extern u64 boot_pdpt[512];

#define FOUR_GIB 0x100000000ull

static u64 high_directories[4][512] __attribute__((aligned(4096)));

static u64 end_of_memory(u64 from, u64 below) {
  const struct StartInfo* info = (const struct StartInfo*)start_info;
  const struct MemoryMapEntry* entries = (const struct MemoryMapEntry*)info->memory_map;
  u64 end = from;
  for (u32 index = 0; index < info->memory_map_entries; ++index) {
    u64 entry_end = entries[index].address + entries[index].bytes;
    if (entries[index].type == RAM_TYPE && entries[index].address < below &&
        entry_end > end && entries[index].address >= (from & ~(FOUR_GIB - 1))) {
      end = entry_end;
    }
  }
  return end;
}

u64 low_memory_end(void) { return end_of_memory(0, FOUR_GIB) & ~0xfffull; }

u64 high_memory_bytes(void) { return end_of_memory(FOUR_GIB, ~0ull) - FOUR_GIB; }

void map_high_memory(void) {
  for (u64 gib = 0; gib < 4 && gib << 30 < high_memory_bytes(); ++gib) {
    for (u64 page = 0; page < 512; ++page) {
      high_directories[gib][page] = FOUR_GIB + (gib << 30) + (page << 21) + LARGE_PAGE_FLAGS;
    }
    boot_pdpt[4 + gib] = (u64)high_directories[gib] + TABLE_FLAGS;
  }
}
