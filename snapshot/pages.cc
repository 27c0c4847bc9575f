#include "snapshot/pages.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "vmm/base/check.h"
#include "vmm/memory/page_table.h"

namespace snapshot {
namespace {

bool pages_equal(const u8* ram, const u8* image) {
  if (image != nullptr) return std::memcmp(ram, image, base::kPageBytes) == 0;
  // All zero: the first byte is, and every byte equals the one after it.
  return ram[0] == 0 && std::memcmp(ram, ram + 1, base::kPageBytes - 1) == 0;
}

// Calls visit(page number, page count, their bytes in the image or null for zeros).
template <class Visit>
void for_each_piece(const MemoryImage& image, const memory::PageSet& pages, Visit visit) {
  pages.for_each_run([&](u64 first, u64 count) {
    while (count != 0) {
      const MemoryImage::Piece piece = image.piece(first, count);
      visit(first, piece.page_count, piece.data);
      first += piece.page_count;
      count -= piece.page_count;
    }
  });
}

void copy_pages(u8* to, const u8* from, u64 page_count) {
  const u64 bytes = page_count * base::kPageBytes;
  if (from == nullptr) {
    std::memset(to, 0, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

alignas(base::kPageBytes) constexpr std::array<u8, base::kPageBytes> kZeroPage{};

}  // namespace

void restore_pages(memory::GuestMemory& memory, const MemoryImage& image,
                   const memory::PageSet& pages) {
  CHECK(image.page_count() == memory.page_count() && pages.page_count() == memory.page_count());
  u8* const ram = memory.quiet_ram().data();
  for_each_piece(image, pages, [&](u64 first, u64 count, const u8* data) {
    copy_pages(ram + first * base::kPageBytes, data, count);
  });
}

void restore_pages_watching_tables(memory::GuestMemory& memory, const MemoryImage& image,
                                   const memory::PageSet& pages, const memory::PageSet& unwatched,
                                   std::size_t limit, std::vector<u64>& rewritten) {
  CHECK(image.page_count() == memory.page_count() && pages.page_count() == memory.page_count());
  u8* const ram = memory.quiet_ram().data();
  for_each_piece(image, pages, [&](u64 first, u64 count, const u8* data) {
    for (u64 i = 0; i < count; ++i) {
      const u64 offset = i * base::kPageBytes;
      const bool is_table =
          memory::rewrite_page(ram + first * base::kPageBytes + offset,
                               data == nullptr ? kZeroPage.data() : data + offset);
      if (rewritten.size() <= limit && (is_table || unwatched.contains(first + i))) {
        rewritten.push_back(first + i);
      }
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
