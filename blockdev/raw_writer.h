// RawWriter: a raw image that is written: its bytes are the disk's, so every write is in place.
//
// Space that the guest gives back is punched out of the file.

#pragma once

#include <atomic>

#include "blockdev/writable_image.h"
#include "vmm/base/fd.h"

namespace blockdev {

class RawWriter final : public WritableImage {
 public:
  static Result<std::shared_ptr<RawWriter>> create(base::Fd fd);

  u64 size_bytes() const override { return size_bytes_; }
  Result<Extent> map(u64 offset, u64 length) const override;
  Result<void> read_computed(u64 offset, u64 length, IovecCursor& to,
                             ReadScratch& scratch) const override;

  int fd() const override { return fd_.get(); }
  // What file systems give back.
  u32 discard_granularity_bytes() const override { return 4096; }
  WriteStep begin_write(ByteRange range, WriteKind kind, WriteTicket& ticket,
                        Waker& waker) override;
  void end_write(WriteTicket&, int) override {}
  int flush(WaitingIo& io, FlushReason reason) override;
  FlushNeed flush_need() const override { return FlushNeed::none; }
  Result<void> resize(u64 size_bytes, WaitingIo& io) override;
  bool may_keep_what_is_behind() const override { return false; }
  Result<void> record_size(WaitingIo&) override { return {}; }  // the file's size is the disk's
  Result<void> close(WaitingIo&) override { return {}; }

 private:
  RawWriter(base::Fd fd, u64 size_bytes) : fd_(std::move(fd)), size_bytes_(size_bytes) {}

  const base::Fd fd_;
  u64 size_bytes_;
  // A sync did: what it was to make durable may be lost (2.2).
  std::atomic<bool> has_failed_{false};
};

}  // namespace blockdev
