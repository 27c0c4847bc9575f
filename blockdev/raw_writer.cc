#include "blockdev/raw_writer.h"

#include "blockdev/raw_image.h"
#include "vmm/base/check.h"

namespace blockdev {

Result<std::shared_ptr<RawWriter>> RawWriter::create(base::Fd fd) {
  const u64 size = TRY(raw_disk_bytes(fd));
  return std::shared_ptr<RawWriter>(new RawWriter(std::move(fd), size));
}

Result<Extent> RawWriter::map(u64 offset, u64 length) const {
  return Extent{
      .kind = ExtentKind::file, .length_bytes = length, .fd = fd_.get(), .file_offset = offset};
}

Result<void> RawWriter::read_computed(u64, u64, IovecCursor&, ReadScratch&) const {
  CHECK(false);  // map() never says so
}

WriteStep RawWriter::begin_write(ByteRange range, WriteKind kind, WriteTicket&, Waker&) {
  const bool gives_back = kind == WriteKind::discard || kind == WriteKind::zeroes_unmap;
  return {.kind = gives_back ? StepKind::punch_in_place : StepKind::in_place,
          .length_bytes = range.length,
          .file_offset = range.offset};
}

int RawWriter::flush(WaitingIo& io, FlushReason) {
  if (has_failed_) return EIO;
  const int error = io.sync(fd_.get());
  if (error != 0) has_failed_ = true;
  return error;
}

Result<void> RawWriter::resize(u64 size_bytes, WaitingIo& io) {
  const int error = io.run({.kind = IoKind::truncate, .fd = fd_.get(), .offset = size_bytes});
  if (error != 0) return Error::from_errno(error, "resize a raw image");
  size_bytes_ = size_bytes;
  return {};
}

}  // namespace blockdev
