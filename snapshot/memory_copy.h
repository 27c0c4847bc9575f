// The copy of guest memory at T: the one thing that takes time inside a pause.
//
//   before the pause   CopyBuffer::prepare(ram, populated_pages(memory).count())
//   in the pause       copy_memory(memory, pages, buffer, base)
//
// `pages` is what differs from `base`: for the first snapshot of a VM that booted, the populated
// pages over zeros; later, the pages dirtied since the snapshot the VM stands on, over its image.

#pragma once

#include <memory>

#include "snapshot/memory_image.h"
#include "vmm/memory/guest_memory.h"

namespace snapshot {

// How RAM began: decides what a page means that was never touched.
enum class RamOrigin : u8 {
  zeros,  // GuestMemory::create
  file,   // GuestMemory::create_from_file
};

// The pages that may differ from zeros: for RAM that began as zeros, those that are present or in
// swap; all pages for RAM that began as a file, or when /proc/self/pagemap cannot be read.
memory::PageSet populated_pages(memory::GuestMemory& memory, RamOrigin origin);

// Where the copy will go. Preparing it before the pause saves the page faults inside it, which on a
// loaded host cost many times the copy itself.
class CopyBuffer final {
 public:
  // Room for all of RAM as address space; memory for `expected_pages` at once, the rest on demand.
  static Result<CopyBuffer> prepare(u64 ram_bytes, u64 expected_pages);

 private:
  friend Result<std::shared_ptr<const MemoryImage>> copy_memory(
      memory::GuestMemory& memory, memory::PageSet pages, CopyBuffer buffer,
      std::shared_ptr<const MemoryImage> base);
  explicit CopyBuffer(base::Mapping mapping) : mapping_(std::move(mapping)) {}
  base::Mapping mapping_;
};

// REQUIRES: the machine is quiet. `base` may be null (zeros).
Result<std::shared_ptr<const MemoryImage>> copy_memory(memory::GuestMemory& memory,
                                                       memory::PageSet pages, CopyBuffer buffer,
                                                       std::shared_ptr<const MemoryImage> base);

}  // namespace snapshot
