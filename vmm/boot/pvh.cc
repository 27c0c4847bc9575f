#include "vmm/boot/pvh.h"

#include "vmm/base/check.h"
#include "vmm/boot/layout.h"
#include "vmm/boot/memory_map.h"

namespace boot {
namespace {

// Start info, module and memory map in one piece: one page of guest RAM is touched.
struct StartInfoPage {
  HvmStartInfo info;
  HvmModule initrd;
  HvmMemoryMapEntry memory_map[4];
};
static_assert(base::WireType<StartInfoPage>);
static_assert(kHvmStartInfoAddress + sizeof(StartInfoPage) <= kStartInfoAddress + base::kPageBytes);

}  // namespace

void write_hvm_start_info(memory::GuestMemory& memory, AddressRange initrd) {
  StartInfoPage page{};
  page.info.magic = kHvmStartMagic;
  page.info.version = kHvmStartVersion;
  page.info.command_line = kCommandLineAddress;
  page.info.rsdp = kAcpiTablesStart;
  page.info.memory_map = kHvmStartInfoAddress + offsetof(StartInfoPage, memory_map);
  if (initrd.start != initrd.end) {
    page.info.module_count = 1;
    page.info.module_list = kHvmStartInfoAddress + offsetof(StartInfoPage, initrd);
    page.initrd.address = initrd.start;
    page.initrd.size = initrd.end - initrd.start;
  }
  const MemoryMap map(memory);
  CHECK(map.entries().size() <= std::size(page.memory_map));
  u32 count = 0;
  for (const MemoryMapEntry& entry : map.entries()) {
    page.memory_map[count++] = {entry.start, entry.length, static_cast<u32>(entry.type), {}};
  }
  page.info.memory_map_count = count;
  CHECK(memory.write(Gpa{kHvmStartInfoAddress}, page));
}

}  // namespace boot
