#include "vmm/boot/memory_map.h"

#include "vmm/boot/layout.h"

namespace boot {

MemoryMap::MemoryMap(const memory::GuestMemory& memory) {
  append(0, kLegacyHoleStart, MemoryType::ram);
  append(kLegacyHoleStart, kKernelAreaStart, MemoryType::reserved);
  append(kKernelAreaStart, memory.regions()[0].length_bytes, MemoryType::ram);
  for (const memory::RamRegion& region : memory.regions().subspan(1)) {
    append(region.gpa.value, region.gpa.value + region.length_bytes, MemoryType::ram);
  }
}

void MemoryMap::append(u64 start, u64 end, MemoryType type) {
  // A machine of exactly 1 MiB has nothing above the legacy hole.
  if (start < end) entries_.at(count_++) = {start, end - start, type};
}

}  // namespace boot
