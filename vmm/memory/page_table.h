// Page tables that the host rewrites, seen from what a processor may remember of them.
//
// SDM volume 3, "Accessed and Dirty Flags" and "Details of TLB Use": a translation is cached only
// from entries that are present and accessed. So a page whose entries of that kind stay as they are
// can be rewritten and leaves nothing stale, whether it was ever a page table or not.

#pragma once

#include "vmm/base/types.h"

namespace memory {

// Makes the page `page` what `then` is, and says whether that changed a value that a processor could
// have used as a page-table entry. True too often, never too rarely: any data may look like an entry.
// Entries of 8 and of 4 bytes (32-bit paging) count. Of PAE's page-directory pointers, which have no
// accessed flag, the processor keeps copies that are registers; they are restored with those.
//
// Of a page of which little differs, little is written: comparing takes half the time of copying.
[[nodiscard]] bool rewrite_page(u8* page, const u8* then);

}  // namespace memory
