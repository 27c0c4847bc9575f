#include "vmm/boot/boot_params.h"

#include "vmm/base/check.h"
#include "vmm/boot/layout.h"
#include "vmm/boot/memory_map.h"
#include "vmm/boot/random_bytes.h"

namespace boot {

Result<void> write_boot_params(memory::GuestMemory& memory, const SetupHeader& header,
                               AddressRange initrd) {
  BootParams params{};
  params.acpi_rsdp_addr = kAcpiTablesStart;
  params.header = header;
  params.header.type_of_loader = kLoaderUndefined;
  params.header.cmd_line_ptr = static_cast<u32>(kCommandLineAddress);
  params.header.ramdisk_image = static_cast<u32>(initrd.start);
  params.header.ramdisk_size = static_cast<u32>(initrd.end - initrd.start);
  params.header.setup_data = kSetupDataAddress;

  const MemoryMap map(memory);
  for (const MemoryMapEntry& entry : map.entries()) {
    params.e820_table[params.e820_entries++] = {entry.start, entry.length,
                                                static_cast<u32>(entry.type)};
  }
  CHECK(memory.write(Gpa{kZeroPageAddress}, params));

  RngSeed seed{.next = {}, .type = kSetupRngSeed, .length = sizeof seed.seed, .seed = {}};
  TRY(fill_random(seed.seed));
  CHECK(memory.write(Gpa{kSetupDataAddress}, seed));
  return {};
}

}  // namespace boot
