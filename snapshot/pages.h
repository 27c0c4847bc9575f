// Putting guest memory back, and proving that it is back.

#pragma once

#include "snapshot/memory_image.h"
#include "vmm/memory/guest_memory.h"

namespace snapshot {

// Copies `pages` from the image into RAM. Does not mark them dirty.
// REQUIRES: the machine is quiet; image and RAM have the same size.
void restore_pages(memory::GuestMemory& memory, const MemoryImage& image,
                   const memory::PageSet& pages);

struct Comparison {
  u64 differing_pages = 0;
  u64 first_page = 0;  // valid when differing_pages != 0
  bool equal() const { return differing_pages == 0; }
};

// Compares all of RAM with the image, but for the pages in `allowed` (pvclock pages, which KVM
// writes while nothing runs). Touches every page of RAM.
Comparison compare_all(memory::GuestMemory& memory, const MemoryImage& image,
                       const memory::PageSet& allowed);

}  // namespace snapshot
