#include "vmm/boot/kernel.h"

#include <array>

#include "vmm/boot/acpi.h"
#include "vmm/boot/boot_params.h"
#include "vmm/boot/bzimage.h"
#include "vmm/boot/command_line.h"
#include "vmm/boot/elf.h"
#include "vmm/boot/initrd.h"
#include "vmm/boot/pvh.h"
#include "vmm/boot/reset_vector.h"

namespace boot {
namespace {

// The header that a vmlinux would have had in its bzImage: what Linux reads of it after its 64-bit
// entry.
SetupHeader vmlinux_header() {
  SetupHeader header{};
  header.boot_flag = kBootFlag;
  header.header = kHeaderMagic;
  header.version = kProtocolOfToday;
  header.loadflags = kLoadFlagLoadedHigh;
  header.cmdline_size = static_cast<u32>(kDefaultCommandLineMaximum);
  return header;
}

Result<StartRegisters> load_elf_kernel(const KernelFile& file, memory::GuestMemory& memory,
                                       const BootConfig& config) {
  const ElfKernel kernel = TRY(load_elf(file, memory));
  TRY(write_command_line(memory, config.command_line, kDefaultCommandLineMaximum));
  const AddressRange initrd =
      TRY(load_initrd(config.initrd_path, memory, kernel.occupied, kDefaultInitrdAddressMaximum));
  if (kernel.pvh_entry) {
    write_hvm_start_info(memory, initrd);
    return prepare_protected_mode(memory, *kernel.pvh_entry);
  }
  TRY(write_boot_params(memory, vmlinux_header(), initrd));
  return prepare_long_mode(memory, kernel.entry);
}

struct KnownMagic {
  u64 offset;
  std::string_view bytes;
  std::string_view hint;
};

// What people give as a kernel by mistake.
constexpr std::array<KnownMagic, 7> kKnownMagics{{
    {0x38, "ARM\x64", "this is a kernel for 64-bit ARM"},
    {0, "\x1f\x8b", "the file is compressed: gunzip it first"},
    {0,
     "\xfd"
     "7zXZ",
     "the file is compressed: unxz it first"},
    {0, "\x28\xb5\x2f\xfd", "the file is compressed: unzstd it first"},
    {0, "QFI\xfb", "this is a qcow2 image: give it as --disk"},
    {0, "070701", "this is an initramfs: give it as --initrd"},
    {0, "MZ", "this is an EFI program; a bzImage of Linux has \"HdrS\" at offset 0x202"},
}};

Error unknown_format(const KernelFile& file) {
  std::string hint =
      "use a vmlinuz (bzImage) or vmlinux of an x86-64 Linux, or an ELF64 with a PVH "
      "note";
  for (const KnownMagic& magic : kKnownMagics) {
    std::array<u8, 8> bytes{};
    const std::span<u8> found = std::span(bytes).first(magic.bytes.size());
    if (file.read(magic.offset, found, "magic") &&
        std::equal(found.begin(), found.end(), magic.bytes.begin(),
                   [](u8 a, char b) { return a == static_cast<u8>(b); })) {
      hint = magic.hint;
      break;
    }
  }
  return make_error(ErrorKind::unsupported,
                    "neither an ELF file (0x7f \"ELF\" at offset 0) nor a bzImage (\"HdrS\" at "
                    "offset 0x202); the file has {} bytes",
                    file.size_bytes())
      .with_hint(std::move(hint));
}

Result<StartRegisters> load(memory::GuestMemory& memory, const BootConfig& config) {
  const KernelFile file = TRY(KernelFile::open(config.kernel_path));
  if (looks_like_elf(file)) return load_elf_kernel(file, memory, config);
  if (looks_like_bzimage(file)) return load_bzimage(file, memory, config);
  return unknown_format(file);
}

}  // namespace

Result<StartRegisters> load_kernel(memory::GuestMemory& memory, const BootConfig& config) {
  const StartRegisters registers =
      TRY_CONTEXT(load(memory, config), fmt::format("kernel \"{}\"", config.kernel_path));
  TRY_CONTEXT(acpi::build_tables(memory, config.vcpu_count, config.virtio_slots_present),
              "ACPI tables");
  write_reset_vector(memory);
  return registers;
}

}  // namespace boot
