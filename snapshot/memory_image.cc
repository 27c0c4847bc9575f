#include "snapshot/memory_image.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace snapshot {
namespace {

alignas(base::kPageBytes) constexpr u8 kZeros[base::kPageBytes] = {};

// How many pages from `page` on, at most `limit`, are all in the set or all outside it.
u64 uniform_run(const memory::PageSet& pages, u64 page, u64 limit) {
  const std::span<const u64> words = pages.words();
  const u64 flip = pages.contains(page) ? ~u64{0} : 0;
  u64 run = 0;
  while (run < limit) {
    const u64 at = page + run;
    const u64 left_in_word = 64 - at % 64;
    const u64 differs = (words[at / 64] ^ flip) >> (at % 64);
    const u64 same = std::min<u64>(static_cast<u64>(std::countr_zero(differs)), left_in_word);
    run += same;
    if (same < left_in_word) break;
  }
  return std::min(run, limit);
}

// lseek(2): a file system that does not tell its holes says that all is data; so does an error.
memory::PageSet find_data(const base::Fd& file, u64 page_count) {
  memory::PageSet pages(page_count);
  const off_t end = static_cast<off_t>(page_count * base::kPageBytes);
  for (off_t at = 0; at < end;) {
    const off_t data = ::lseek(file.get(), at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) return pages;
    const off_t hole = data < 0 ? -1 : ::lseek(file.get(), data, SEEK_HOLE);
    if (hole < 0) {
      pages.insert_all();
      return pages;
    }
    at = std::min(hole, end);
    const u64 beyond = base::divide_up(static_cast<u64>(at), base::kPageBytes);
    for (u64 page = static_cast<u64>(data) / base::kPageBytes; page < beyond; ++page) {
      pages.insert(page);
    }
  }
  return pages;
}

}  // namespace

Result<std::shared_ptr<const MemoryImage>> MemoryImage::of_file(const base::Fd& file,
                                                                u64 ram_bytes) {
  CHECK(ram_bytes != 0 && base::is_aligned(ram_bytes, base::kPageBytes));
  const u64 bytes = TRY(base::file_size(file));
  if (bytes != ram_bytes) {
    return make_error(ErrorKind::corrupt, "memory file has {} bytes, needs {}", bytes, ram_bytes);
  }
  base::Mapping view =
      TRY(base::Mapping::of_file(file, ram_bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE));
  ::madvise(view.data(), view.size_bytes(), MADV_DONTDUMP);
  std::shared_ptr<MemoryImage> image(
      new MemoryImage(ram_bytes / base::kPageBytes, std::move(view)));
  image->file_ = TRY(file.duplicate());
  return std::shared_ptr<const MemoryImage>(std::move(image));
}

std::shared_ptr<const MemoryImage> MemoryImage::of_copy(memory::PageSet pages, base::Mapping packed,
                                                        std::shared_ptr<const MemoryImage> base) {
  CHECK(packed.size_bytes() >= pages.count() * base::kPageBytes);
  CHECK(base == nullptr || base->page_count() == pages.page_count());
  std::shared_ptr<MemoryImage> image(new MemoryImage(pages.page_count(), std::move(packed)));
  image->packed_before_.reserve(pages.words().size());
  u32 before = 0;
  for (const u64 word : std::as_const(pages).words()) {
    image->packed_before_.push_back(before);
    before += static_cast<u32>(std::popcount(word));
  }
  image->copied_ = std::move(pages);
  image->base_ = std::move(base);
  return image;
}

MemoryImage::Piece MemoryImage::piece(u64 page, u64 limit) const {
  CHECK(limit >= 1 && base::contains(page_count_, page, limit));
  const MemoryImage* image = this;
  // Down the chain of bases to the one that has the page.
  while (image->copied_.page_count() != 0) {
    limit = uniform_run(image->copied_, page, limit);
    if (image->copied_.contains(page)) {
      const u64 word = image->copied_.words()[page / 64];
      const u64 below = word & ((u64{1} << (page % 64)) - 1);
      const u64 index = image->packed_before_[page / 64] + static_cast<u64>(std::popcount(below));
      return {image->bytes_.data() + index * base::kPageBytes, limit};
    }
    if (image->base_ == nullptr) return {nullptr, limit};
    image = image->base_.get();
  }
  const memory::PageSet& in_file = image->pages_in_file();
  limit = uniform_run(in_file, page, limit);
  if (!in_file.contains(page)) return {nullptr, limit};
  return {image->bytes_.data() + page * base::kPageBytes, limit};
}

const memory::PageSet& MemoryImage::pages_in_file() const {
  std::call_once(holes_known_, [this] {
    in_file_ = find_data(file_, page_count_);
    file_.reset();
  });
  return in_file_;
}

const u8* MemoryImage::page(u64 page) const {
  const Piece found = piece(page, 1);
  return found.data == nullptr ? kZeros : found.data;
}

void MemoryImage::populate() const {
  // Advice: a page that cannot be read now is read when it is needed.
  if (copied_.page_count() != 0) return;
  pages_in_file().for_each_run([&](u64 first, u64 count) {
    ::madvise(bytes_.data() + first * base::kPageBytes, count * base::kPageBytes,
              MADV_POPULATE_READ);
  });
}

}  // namespace snapshot
