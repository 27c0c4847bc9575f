#include "vmm/boot/bzimage.h"

#include <algorithm>

#include "vmm/base/ranges.h"
#include "vmm/boot/boot_params.h"
#include "vmm/boot/command_line.h"
#include "vmm/boot/initrd.h"
#include "vmm/boot/layout.h"

namespace boot {
namespace {

constexpr u64 kSectorBytes = 512;
constexpr u64 kParagraphBytes = 16;
constexpr u64 kEntry64Offset = 0x200;
constexpr u8 kDefaultSetupSectors = 4;  // what 0 stands for

Result<void> check_header(const SetupHeader& header) {
  if (header.boot_flag != kBootFlag) {
    return make_error(ErrorKind::corrupt,
                      "bzImage: boot_flag at offset 0x1fe is {:#06x}, not {:#x}",
                      u16{header.boot_flag}, kBootFlag)
        .with_hint("the file is damaged; fetch it again");
  }
  if (header.version < kProtocolWithExtendedFlags) {
    return make_error(ErrorKind::unsupported,
                      "bzImage: boot protocol {}.{} at offset 0x206 is older than 2.12",
                      header.version >> 8, header.version & 0xff)
        .with_hint("use a 64-bit kernel of Linux 3.8 or newer");
  }
  if ((header.xloadflags & kExtendedLoadFlagKernel64) == 0) {
    return make_error(ErrorKind::unsupported,
                      "bzImage: a 32-bit kernel (xloadflags at offset 0x236 is {:#x}, without "
                      "XLF_KERNEL_64)",
                      u16{header.xloadflags})
        .with_hint("use an x86-64 kernel, such as Debian's linux-image-amd64");
  }
  if ((header.loadflags & kLoadFlagLoadedHigh) == 0) {
    return make_error(ErrorKind::unsupported,
                      "bzImage: loadflags at offset 0x211 is {:#x}, without LOADED_HIGH: a zImage",
                      header.loadflags);
  }
  return {};
}

// The header, with what lies beyond the end that it states set to zero.
Result<SetupHeader> read_header(const KernelFile& file) {
  SetupHeader header = TRY(file.read<SetupHeader>(kSetupHeaderOffset, "bzImage setup header"));
  TRY(check_header(header));
  const u64 length = kSetupHeaderEndBase + header.jump_distance - kSetupHeaderOffset;
  // init_size is the last field we need; kernels with protocol 2.12 have it.
  constexpr u64 kNeeded = offsetof(SetupHeader, handover_offset);
  if (length < kNeeded) {
    return make_error(ErrorKind::corrupt,
                      "bzImage: the setup header ends at {:#x} (offset 0x201), before init_size",
                      length + kSetupHeaderOffset);
  }
  if (length < sizeof header) {
    std::fill_n(reinterpret_cast<u8*>(&header) + length, sizeof header - length, u8{0});
  }
  return header;
}

// Where the kernel goes and what it needs there while it unpacks itself. pref_address is where it
// ends up in any case: a relocatable kernel that is loaded lower moves up to it.
Result<AddressRange> place_kernel(const SetupHeader& header, u64 payload_bytes, AddressRange ram) {
  const u64 address = std::max(u64{header.pref_address}, kKernelAreaStart);
  const u64 needed = std::max(u64{header.init_size}, payload_bytes);
  const std::optional<u64> end = base::checked_add(address, needed);
  if (!end || *end > ram.end) {
    return make_error(ErrorKind::usage,
                      "bzImage: needs {:#x} bytes of RAM from {:#x} on (init_size, pref_address), "
                      "the machine's ends at {:#x}",
                      needed, address, ram.end)
        .with_hint(end && *end <= memory::kLowRamLimit
                       ? fmt::format("give the machine at least {} MiB of memory (-m)",
                                     base::divide_up(*end, base::kMiB))
                       : "the header is damaged, or this is no kernel for a PC");
  }
  return AddressRange{address, *end};
}

}  // namespace

bool looks_like_bzimage(const KernelFile& file) {
  const Result<le32> magic = file.read<le32>(kHeaderMagicOffset, "bzImage magic");
  return magic && *magic == kHeaderMagic;
}

Result<StartRegisters> load_bzimage(const KernelFile& file, memory::GuestMemory& memory,
                                    const BootConfig& config) {
  SetupHeader header = TRY(read_header(file));
  const u64 sectors = header.setup_sects == 0 ? kDefaultSetupSectors : header.setup_sects;
  const u64 payload_offset = (sectors + 1) * kSectorBytes;
  const u64 payload_bytes = u64{header.syssize} * kParagraphBytes;
  if (payload_bytes <= kEntry64Offset) {
    return make_error(ErrorKind::corrupt,
                      "bzImage: syssize at offset 0x1f4 gives {} bytes, less than the 64-bit entry "
                      "at {:#x}",
                      payload_bytes, kEntry64Offset);
  }
  const AddressRange place = TRY(place_kernel(header, payload_bytes, loadable_ram(memory)));
  TRY(write_command_line(memory, config.command_line, header.cmdline_size));
  TRY(file.copy_to_guest(payload_offset, payload_bytes, memory, place.start,
                         "bzImage kernel (setup_sects, syssize)"));
  const AddressRange initrd =
      TRY(load_initrd(config.initrd_path, memory, place, header.initrd_addr_max));
  header.code32_start = static_cast<u32>(place.start);
  TRY(write_boot_params(memory, header, initrd));
  return prepare_long_mode(memory, place.start + kEntry64Offset);
}

}  // namespace boot
