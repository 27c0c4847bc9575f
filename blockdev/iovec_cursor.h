// IovecCursor: a place in a list of buffers that only moves forward.

#pragma once

#include <sys/uio.h>

#include <cstring>
#include <span>
#include <vector>

#include "vmm/base/check.h"
#include "vmm/base/types.h"

namespace blockdev {

class IovecCursor final {
 public:
  explicit IovecCursor(std::span<const iovec> buffers) : left_(buffers) {}

  // Calls use(pointer, size) for each contiguous piece of the next `length` bytes.
  // REQUIRES: the buffers have `length` bytes left.
  template <class Use>
  void consume(u64 length, Use use) {
    while (length > 0) {
      CHECK(!left_.empty());
      const u64 size = left_.front().iov_len - done_;
      const u64 piece = size < length ? size : length;
      if (piece > 0) use(static_cast<u8*>(left_.front().iov_base) + done_, piece);
      length -= piece;
      done_ += piece;
      if (done_ == left_.front().iov_len) {
        left_ = left_.subspan(1);
        done_ = 0;
      }
    }
  }

  void skip(u64 length) {
    consume(length, [](u8*, u64) {});
  }
  void fill_zero(u64 length) {
    consume(length, [](u8* to, u64 size) { std::memset(to, 0, size); });
  }
  void copy_in(const u8* from, u64 length) {
    consume(length, [&](u8* to, u64 size) {
      std::memcpy(to, from, size);
      from += size;
    });
  }
  void copy_out(u8* to, u64 length) {
    consume(length, [&](const u8* from, u64 size) {
      std::memcpy(to, from, size);
      to += size;
    });
  }
  // Replaces `out` with the pieces of the next `length` bytes.
  void slice(u64 length, std::vector<iovec>& out) {
    out.clear();
    consume(length, [&](u8* data, u64 size) { out.push_back({data, size}); });
  }

 private:
  std::span<const iovec> left_;
  u64 done_ = 0;  // of left_.front()
};

}  // namespace blockdev
