// Putting guest memory back, and proving that it is back.

#pragma once

#include "snapshot/memory_image.h"
#include "vmm/memory/guest_memory.h"

namespace snapshot {

// Copies `pages` from the image into RAM. Does not mark them dirty.
// REQUIRES: the machine is quiet; image and RAM have the same size.
void restore_pages(memory::GuestMemory& memory, const MemoryImage& image,
                   const memory::PageSet& pages);

// restore_pages for a host that has to be told of rewritten page tables. Appends to `rewritten` the
// numbers of the pages that lost an entry which a processor may remember; once there are more than
// `limit` it looks no further. KVM watches what the guest writes to its page tables, so that what it
// remembers agrees with what lies in RAM now, except in the pages of `unwatched`, which were written
// without it: those count in any case.
void restore_pages_watching_tables(memory::GuestMemory& memory, const MemoryImage& image,
                                   const memory::PageSet& pages, const memory::PageSet& unwatched,
                                   std::size_t limit, std::vector<u64>& rewritten);

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
