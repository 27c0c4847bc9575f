#include "snapshot/pages.h"

#include <algorithm>
#include <cstring>

#include "vmm/base/check.h"

namespace snapshot {
namespace {

bool pages_equal(const u8* ram, const u8* image) {
  if (image != nullptr) return std::memcmp(ram, image, base::kPageBytes) == 0;
  // All zero: the first byte is, and every byte equals the one after it.
  return ram[0] == 0 && std::memcmp(ram, ram + 1, base::kPageBytes - 1) == 0;
}

}  // namespace

void restore_pages(memory::GuestMemory& memory, const MemoryImage& image,
                   const memory::PageSet& pages) {
  CHECK(image.page_count() == memory.page_count() && pages.page_count() == memory.page_count());
  u8* const ram = memory.quiet_ram().data();
  pages.for_each_run([&](u64 first, u64 count) {
    while (count != 0) {
      const MemoryImage::Piece piece = image.piece(first, count);
      u8* const to = ram + first * base::kPageBytes;
      const u64 bytes = piece.page_count * base::kPageBytes;
      if (piece.data == nullptr) {
        std::memset(to, 0, bytes);
      } else {
        std::memcpy(to, piece.data, bytes);
      }
      first += piece.page_count;
      count -= piece.page_count;
    }
  });
}

Comparison compare_all(memory::GuestMemory& memory, const MemoryImage& image,
                       const memory::PageSet& allowed) {
  CHECK(image.page_count() == memory.page_count() && allowed.page_count() == memory.page_count());
  const u8* const ram = memory.quiet_ram().data();
  Comparison result;
  for (u64 first = 0; first < image.page_count();) {
    const MemoryImage::Piece piece = image.piece(first, image.page_count() - first);
    for (u64 i = 0; i < piece.page_count; ++i) {
      const u64 offset = i * base::kPageBytes;
      const u8* const there = piece.data == nullptr ? nullptr : piece.data + offset;
      if (pages_equal(ram + first * base::kPageBytes + offset, there)) continue;
      if (allowed.contains(first + i)) continue;
      if (result.differing_pages++ == 0) result.first_page = first + i;
    }
    first += piece.page_count;
  }
  return result;
}

}  // namespace snapshot
