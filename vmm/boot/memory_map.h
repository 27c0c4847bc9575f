// The RAM that a guest is told of, the same for every way of booting.

#pragma once

#include <array>
#include <span>

#include "vmm/memory/guest_memory.h"

namespace boot {

enum class MemoryType : u32 {
  ram = 1,       // E820_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RAM
  reserved = 2,  // E820_TYPE_RESERVED, XEN_HVM_MEMMAP_TYPE_RESERVED
};

struct MemoryMapEntry {
  u64 start = 0;
  u64 length = 0;
  MemoryType type = MemoryType::ram;
};

// Sorted, without overlap. At most four entries: conventional RAM, the legacy hole with the ACPI
// tables, RAM below the device hole, RAM above 4 GiB.
class MemoryMap final {
 public:
  explicit MemoryMap(const memory::GuestMemory& memory);
  std::span<const MemoryMapEntry> entries() const { return {entries_.data(), count_}; }

 private:
  void append(u64 start, u64 end, MemoryType type);

  std::array<MemoryMapEntry, 4> entries_;
  u32 count_ = 0;
};

}  // namespace boot
