// What a kernel that is entered by PVH finds: the start info and the lists it points to.
// Xen, xen/include/public/arch-x86/hvm/start_info.h, version 1.

#pragma once

#include "vmm/base/wire.h"
#include "vmm/boot/kernel_file.h"
#include "vmm/memory/guest_memory.h"

namespace boot {

// struct hvm_start_info
struct HvmStartInfo {
  le32 magic;             //  0  kHvmStartMagic
  le32 version;           //  4
  le32 flags;             //  8
  le32 module_count;      // 12
  le64 module_list;       // 16  HvmModule
  le64 command_line;      // 24
  le64 rsdp;              // 32
  le64 memory_map;        // 40  HvmMemoryMapEntry
  le32 memory_map_count;  // 48
  le32 reserved;          // 52
};
static_assert(base::WireType<HvmStartInfo> && sizeof(HvmStartInfo) == 56);
inline constexpr u32 kHvmStartMagic = 0x336ec578;
inline constexpr u32 kHvmStartVersion = 1;

// struct hvm_modlist_entry
struct HvmModule {
  le64 address;       //  0
  le64 size;          //  8
  le64 command_line;  // 16
  le64 reserved;      // 24
};
static_assert(base::WireType<HvmModule> && sizeof(HvmModule) == 32);

// struct hvm_memmap_table_entry
struct HvmMemoryMapEntry {
  le64 start;     //  0
  le64 length;    //  8
  le32 type;      // 16  MemoryType
  le32 reserved;  // 20
};
static_assert(base::WireType<HvmMemoryMapEntry> && sizeof(HvmMemoryMapEntry) == 24);

// Writes the start info to kHvmStartInfoAddress. The command line is at kCommandLineAddress.
void write_hvm_start_info(memory::GuestMemory& memory, AddressRange initrd);

}  // namespace boot
