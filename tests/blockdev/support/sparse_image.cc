#include "tests/blockdev/support/sparse_image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "vmm/base/check.h"

namespace blockdev::test {
namespace {

u64 mix(u64 value) {
  value ^= value >> 32;
  value *= 0xd6e8feb86659fd93;
  value ^= value >> 29;
  value *= 0x9e3779b97f4a7c15;
  return value ^ (value >> 32);
}

// 1 for a page of zeros: the same as no page.
u64 hash_page(std::span<const u8> bytes) {
  u64 hash = 0x1234567;
  u64 any = 0;
  for (u64 at = 0; at < bytes.size(); at += 8) {
    u64 word = 0;
    std::memcpy(&word, bytes.data() + at, 8);
    any |= word;
    hash = (hash ^ word) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 29;
  }
  return any == 0 ? 1 : std::max<u64>(mix(hash), 2);
}

}  // namespace

SparseImage SparseImage::read(const base::Fd& fd) {
  SparseImage image;
  image.size_ = base::file_size(fd).value();
  u64 at = 0;
  std::vector<u8> bytes(kPageBytes);
  while (at < image.size_) {
    const off_t data = ::lseek(fd.get(), static_cast<off_t>(at), SEEK_DATA);
    if (data < 0) break;  // only a hole is left
    at = static_cast<u64>(data) / kPageBytes * kPageBytes;
    const u64 length = std::min(kPageBytes, image.size_ - at);
    CHECK(base::read_exactly(fd, std::span(bytes).first(length), at).has_value());
    image.write(at, std::span(bytes).first(length));
    at += kPageBytes;
  }
  return image;
}

std::span<u8> SparseImage::writable_page(u64 index) {
  std::shared_ptr<const Page>& page = pages_[index];
  const auto copy = page == nullptr ? std::make_shared<Page>() : std::make_shared<Page>(*page);
  copy->hash = 0;
  page = copy;
  return copy->bytes;
}

void SparseImage::write(u64 offset, std::span<const u8> bytes) {
  size_ = std::max(size_, offset + bytes.size());
  while (!bytes.empty()) {
    const u64 within = offset % kPageBytes;
    const u64 length = std::min<u64>(bytes.size(), kPageBytes - within);
    const std::span<u8> page = writable_page(offset / kPageBytes);
    std::copy_n(bytes.begin(), length, page.begin() + static_cast<std::ptrdiff_t>(within));
    bytes = bytes.subspan(length);
    offset += length;
  }
}

void SparseImage::zero(u64 offset, u64 length) {
  const u64 end = offset + length;
  auto page = pages_.lower_bound(offset / kPageBytes);
  while (page != pages_.end() && page->first * kPageBytes < end) {
    const u64 start = page->first * kPageBytes;
    const u64 from = std::max(offset, start) - start;
    const u64 to = std::min(end, start + kPageBytes) - start;
    if (from == 0 && to == kPageBytes) {
      page = pages_.erase(page);
      continue;
    }
    const std::span<u8> bytes = writable_page(page->first);
    std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(from),
              bytes.begin() + static_cast<std::ptrdiff_t>(to), u8{0});
    ++page;
  }
}

void SparseImage::punch(u64 offset, u64 length) {
  if (offset < size_) zero(offset, std::min(length, size_ - offset));
}

void SparseImage::truncate(u64 size) {
  if (size < size_) zero(size, size_ - size + kPageBytes);
  size_ = size;
}

u64 SparseImage::hash() const {
  u64 hash = mix(size_ + 1);
  for (const auto& [index, page] : pages_) {
    if (page->hash == 0) page->hash = hash_page(page->bytes);
    if (page->hash != 1) hash ^= mix(page->hash + mix(index));
  }
  return hash;
}

ImageSlot ImageSlot::in_memory() {
  return ImageSlot(base::Fd(::memfd_create("image", MFD_CLOEXEC)));
}

void ImageSlot::hold(const SparseImage& image) {
  if (image.size_ != held_.size_) {
    CHECK(::ftruncate(fd_.get(), static_cast<off_t>(image.size_)) == 0);
    held_.truncate(image.size_);
  }
  const std::vector<u8> zeros(SparseImage::kPageBytes, 0);
  const auto put = [&](u64 index, std::span<const u8> bytes) {
    const u64 offset = index * SparseImage::kPageBytes;
    if (offset >= image.size_) return;
    const u64 length = std::min<u64>(bytes.size(), image.size_ - offset);
    CHECK(base::write_exactly(fd_, bytes.first(length), offset).has_value());
  };
  for (const auto& [index, page] : held_.pages_) {
    if (!image.pages_.contains(index)) put(index, zeros);
  }
  for (const auto& [index, page] : image.pages_) {
    const auto held = held_.pages_.find(index);
    if (held == held_.pages_.end() || held->second != page) put(index, page->bytes);
  }
  held_ = image;
}

}  // namespace blockdev::test
