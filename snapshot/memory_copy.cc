#include "snapshot/memory_copy.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace snapshot {
namespace {

// Documentation/admin-guide/mm/pagemap.rst: one 64-bit entry a page. A page of private anonymous
// memory without either bit was never touched and reads as zeros. mincore() is no substitute: a
// page in swap looks absent to it.
constexpr u64 kPagePresent = u64{1} << 63;
constexpr u64 kPageSwapped = u64{1} << 62;
constexpr u64 kEntriesPerRead = 8192;

// Below this many bytes a huge page costs more to clear than it saves in faults.
constexpr u64 kHugePageBytes = 2 * base::kMiB;

Result<memory::PageSet> pages_in_pagemap(std::span<const u8> ram) {
  const base::Fd pagemap = TRY(base::open_file("/proc/self/pagemap", O_RDONLY));
  const u64 first = reinterpret_cast<std::uintptr_t>(ram.data()) / base::kPageBytes;
  memory::PageSet pages(ram.size() / base::kPageBytes);
  std::vector<u64> entries(std::min(kEntriesPerRead, pages.page_count()));
  for (u64 done = 0; done < pages.page_count();) {
    const u64 count = std::min<u64>(entries.size(), pages.page_count() - done);
    TRY(base::read_exactly(pagemap, {reinterpret_cast<u8*>(entries.data()), count * sizeof(u64)},
                           (first + done) * sizeof(u64)));
    for (u64 i = 0; i < count; ++i) {
      if ((entries[i] & (kPagePresent | kPageSwapped)) != 0) pages.insert(done + i);
    }
    done += count;
  }
  return pages;
}

}  // namespace

memory::PageSet populated_pages(memory::GuestMemory& memory, RamOrigin origin) {
  if (origin == RamOrigin::zeros) {
    Result<memory::PageSet> pages = pages_in_pagemap(memory.quiet_ram());
    if (pages) return std::move(*pages);
  }
  memory::PageSet all(memory.page_count());
  all.insert_all();
  return all;
}

Result<CopyBuffer> CopyBuffer::prepare(u64 ram_bytes, u64 expected_pages) {
  base::Mapping mapping = TRY(base::Mapping::anonymous(ram_bytes));
  ::madvise(mapping.data(), ram_bytes, MADV_DONTDUMP);
  const u64 expected_bytes = std::min(ram_bytes, expected_pages * base::kPageBytes);
  // Advice, both: where they are refused the copy takes longer and is the same.
  if (expected_bytes >= kHugePageBytes) {
    ::madvise(mapping.data(), ram_bytes, MADV_HUGEPAGE);
  }
  if (expected_bytes != 0) ::madvise(mapping.data(), expected_bytes, MADV_POPULATE_WRITE);
  return CopyBuffer(std::move(mapping));
}

Result<std::shared_ptr<const MemoryImage>> copy_memory(memory::GuestMemory& memory,
                                                       memory::PageSet pages, CopyBuffer buffer,
                                                       std::shared_ptr<const MemoryImage> base) {
  CHECK(pages.page_count() == memory.page_count());
  CHECK(buffer.mapping_.size_bytes() == memory.size_bytes());
  const std::span<const u8> ram = memory.quiet_ram();
  u8* to = buffer.mapping_.data();
  pages.for_each_run([&](u64 first, u64 count) {
    std::memcpy(to, ram.data() + first * base::kPageBytes, count * base::kPageBytes);
    to += count * base::kPageBytes;
  });
  // What was prepared and not needed goes back to the host.
  u8* const end = buffer.mapping_.data() + buffer.mapping_.size_bytes();
  if (to != end) ::madvise(to, static_cast<std::size_t>(end - to), MADV_DONTNEED);
  return MemoryImage::of_copy(std::move(pages), std::move(buffer.mapping_), std::move(base));
}

}  // namespace snapshot
