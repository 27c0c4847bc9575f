#define XXH_INLINE_ALL
#include "blockdev/stream_writer.h"

#include <unistd.h>

#include <algorithm>
#include <array>

#include "vmm/base/check.h"

namespace blockdev {
namespace {

constexpr u64 kBufferBytes = base::kMiB;
constexpr std::array<u8, 64 * base::kKiB> kZeros{};

}  // namespace

StreamWriter::StreamWriter(const base::Fd& fd)
    : fd_(fd), hash_(XXH3_createState(), XXH3_freeState) {
  CHECK(hash_ != nullptr);
  XXH3_64bits_reset(hash_.get());
  buffer_.reserve(kBufferBytes);
}

Result<void> StreamWriter::append(std::span<const u8> bytes) {
  while (!bytes.empty()) {
    const u64 piece = std::min<u64>(bytes.size(), kBufferBytes - buffer_.size());
    buffer_.insert(buffer_.end(), bytes.begin(),
                   bytes.begin() + static_cast<std::ptrdiff_t>(piece));
    offset_ += piece;
    bytes = bytes.subspan(piece);
    if (buffer_.size() == kBufferBytes) TRY(write_out());
  }
  return {};
}

Result<void> StreamWriter::skip_to(u64 offset) {
  CHECK(offset >= offset_);
  if (offset == offset_) return {};
  TRY(write_out());
  while (offset_ < offset) {
    const u64 piece = std::min<u64>(kZeros.size(), offset - offset_);
    XXH3_64bits_update(hash_.get(), kZeros.data(), piece);
    offset_ += piece;
  }
  return {};
}

Result<void> StreamWriter::write_out() {
  if (buffer_.empty()) return {};
  TRY(base::write_exactly(fd_, buffer_, offset_ - buffer_.size()));
  XXH3_64bits_update(hash_.get(), buffer_.data(), buffer_.size());
  buffer_.clear();
  return {};
}

Result<void> StreamWriter::finish() {
  TRY(write_out());
  if (::ftruncate(fd_.get(), static_cast<off_t>(offset_)) != 0) {
    return errno_error("set the size of a layer file");
  }
  return {};
}

u64 StreamWriter::checksum() const { return XXH3_64bits_digest(hash_.get()); }

}  // namespace blockdev
