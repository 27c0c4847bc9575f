#include "blockdev/raw_image.h"

#include "blockdev/block_backend.h"
#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev {

Result<u64> raw_disk_bytes(const base::Fd& fd) {
  const u64 size = TRY(base::file_size(fd));
  if (size == 0)
    return make_error(ErrorKind::corrupt, "the file is empty, so the disk has no bytes");
  if (size > kMaxDiskBytes) {
    return make_error(ErrorKind::unsupported, "a disk of {} bytes (at most {})", size,
                      kMaxDiskBytes);
  }
  return base::align_up(size, kSectorBytes);
}

Result<std::shared_ptr<RawImage>> RawImage::create(base::Fd fd) {
  const u64 size = TRY(raw_disk_bytes(fd));
  return std::shared_ptr<RawImage>(new RawImage(std::move(fd), size));
}

Result<Extent> RawImage::map(u64 offset, u64 length) const {
  return Extent{
      .kind = ExtentKind::file, .length_bytes = length, .fd = fd_.get(), .file_offset = offset};
}

Result<void> RawImage::read_computed(u64, u64, IovecCursor&, ReadScratch&) const {
  CHECK(false);  // map() never says so
}

}  // namespace blockdev
