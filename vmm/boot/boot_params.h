// The zero page of Linux on x86 and the header at its heart, which also begins every bzImage.
// Linux 6.1, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header", and
// Documentation/arch/x86/zero-page.rst.

#pragma once

#include "vmm/base/result.h"
#include "vmm/base/wire.h"
#include "vmm/boot/kernel_file.h"
#include "vmm/memory/guest_memory.h"

namespace boot {

// struct setup_header. Offsets are those in the file and in the zero page.
struct SetupHeader {
  u8 setup_sects;              // 0x1f1  sectors of real-mode code after the first; 0 means 4
  le16 root_flags;             // 0x1f2
  le32 syssize;                // 0x1f4  the rest of the file in units of 16 bytes
  le16 ram_size;               // 0x1f8
  le16 vid_mode;               // 0x1fa
  le16 root_dev;               // 0x1fc
  le16 boot_flag;              // 0x1fe  kBootFlag
  u8 jump_opcode;              // 0x200
  u8 jump_distance;            // 0x201  the header ends at 0x202 + this
  le32 header;                 // 0x202  kHeaderMagic
  le16 version;                // 0x206
  le32 realmode_swtch;         // 0x208
  le16 start_sys_seg;          // 0x20c
  le16 kernel_version;         // 0x20e
  u8 type_of_loader;           // 0x210  kLoaderUndefined
  u8 loadflags;                // 0x211  LoadFlag
  le16 setup_move_size;        // 0x212
  le32 code32_start;           // 0x214
  le32 ramdisk_image;          // 0x218
  le32 ramdisk_size;           // 0x21c
  le32 bootsect_kludge;        // 0x220
  le16 heap_end_ptr;           // 0x224
  u8 ext_loader_ver;           // 0x226
  u8 ext_loader_type;          // 0x227
  le32 cmd_line_ptr;           // 0x228
  le32 initrd_addr_max;        // 0x22c  last byte an initrd may take
  le32 kernel_alignment;       // 0x230
  u8 relocatable_kernel;       // 0x234
  u8 min_alignment;            // 0x235
  le16 xloadflags;             // 0x236  ExtendedLoadFlag
  le32 cmdline_size;           // 0x238  without the NUL
  le32 hardware_subarch;       // 0x23c
  le64 hardware_subarch_data;  // 0x240
  le32 payload_offset;         // 0x248
  le32 payload_length;         // 0x24c
  le64 setup_data;             // 0x250
  le64 pref_address;           // 0x258
  le32 init_size;              // 0x260  RAM needed from the load address on
  le32 handover_offset;        // 0x264
  le32 kernel_info_offset;     // 0x268
};
inline constexpr u64 kSetupHeaderOffset = 0x1f1;
inline constexpr u64 kSetupHeaderEndBase = 0x202;
static_assert(base::WireType<SetupHeader> && sizeof(SetupHeader) == 0x26c - kSetupHeaderOffset);

inline constexpr u16 kBootFlag = 0xaa55;
inline constexpr u32 kHeaderMagic = 0x53726448;  // "HdrS"
inline constexpr u64 kHeaderMagicOffset = 0x202;
inline constexpr u8 kLoaderUndefined = 0xff;
inline constexpr u8 kLoadFlagLoadedHigh = 1 << 0;          // LOADED_HIGH
inline constexpr u16 kExtendedLoadFlagKernel64 = 1 << 0;   // XLF_KERNEL_64
inline constexpr u16 kProtocolWithExtendedFlags = 0x020c;  // 2.12
inline constexpr u16 kProtocolOfToday = 0x020f;            // 2.15

struct E820Entry {
  le64 start;   //  0
  le64 length;  //  8
  le32 type;    // 16  MemoryType
};
static_assert(base::WireType<E820Entry> && sizeof(E820Entry) == 20);
inline constexpr u32 kE820EntryMaximum = 128;

// struct boot_params
struct BootParams {
  u8 screen_info_and_more[0x70];
  le64 acpi_rsdp_addr;  // 0x070
  u8 unused_078[0x1e8 - 0x78];
  u8 e820_entries;  // 0x1e8
  u8 unused_1e9[0x1ef - 0x1e9];
  u8 sentinel;  // 0x1ef  0: the page was zeroed before it was filled
  u8 unused_1f0;
  SetupHeader header;  // 0x1f1
  u8 unused_26c[0x2d0 - 0x26c];
  E820Entry e820_table[kE820EntryMaximum];  // 0x2d0
  u8 unused_cd0[0x1000 - 0xcd0];
};
static_assert(base::WireType<BootParams> && sizeof(BootParams) == base::kPageBytes);
static_assert(offsetof(BootParams, header) == kSetupHeaderOffset);
static_assert(offsetof(BootParams, e820_table) == 0x2d0);

// struct setup_data with SETUP_RNG_SEED: the kernel credits it as entropy and wipes it.
struct RngSeed {
  le64 next;    //  0
  le32 type;    //  8  kSetupRngSeed
  le32 length;  // 12
  u8 seed[32];  // 16
};
static_assert(base::WireType<RngSeed> && sizeof(RngSeed) == 48);
inline constexpr u32 kSetupRngSeed = 9;

// Writes the zero page around `header` (what the kernel file brought along) and a fresh random
// seed. The command line is at kCommandLineAddress.
Result<void> write_boot_params(memory::GuestMemory& memory, const SetupHeader& header,
                               AddressRange initrd);

}  // namespace boot
