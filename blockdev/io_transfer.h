// IoTransfer: what is left of one operation, as both engines keep it.

#pragma once

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "blockdev/io_engine.h"

namespace blockdev {

inline constexpr int kPunchMode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

struct IoTransfer {
  // Linux takes 1024 buffers in one call (UIO_MAXIOV).
  static constexpr u64 kMaxIovecs = 1024;

  IoKind kind = IoKind::read;
  int fd = -1;
  u64 offset = 0;
  u64 tag = 0;
  u64 length = 0;
  std::vector<iovec> buffers;
  u64 first = 0;  // buffers before this one are done

  void start(const IoOperation& operation) {
    kind = operation.kind;
    fd = operation.fd;
    offset = operation.offset;
    tag = operation.tag;
    length = operation.length;
    buffers.assign(operation.buffers.begin(), operation.buffers.end());
    first = 0;
    skip_done();
  }

  bool moves_bytes() const { return kind == IoKind::read || kind == IoKind::write; }
  bool is_done() const { return moves_bytes() && first == buffers.size(); }
  const iovec* next_buffers() const { return buffers.data() + first; }
  u32 next_count() const {
    return static_cast<u32>(std::min<u64>(kMaxIovecs, buffers.size() - first));
  }

  enum class Step : u8 { again, done };
  // Takes the kernel's answer (a byte count or a negative errno) to the last call. With `done`,
  // `error_number` is the outcome.
  Step take_result(i64 result, int& error_number) {
    error_number = 0;
    if (result == -EINTR) return Step::again;
    if (result < 0) {
      error_number = static_cast<int>(-result);
      return Step::done;
    }
    if (!moves_bytes()) return Step::done;
    if (result == 0) {
      if (kind == IoKind::write) error_number = EIO;
      if (kind == IoKind::read) zero_rest();
      return Step::done;
    }
    advance(static_cast<u64>(result));
    return is_done() ? Step::done : Step::again;
  }

 private:
  void advance(u64 bytes) {
    offset += bytes;
    while (bytes > 0) {
      iovec& buffer = buffers[first];
      const u64 piece = std::min<u64>(bytes, buffer.iov_len);
      buffer.iov_base = static_cast<u8*>(buffer.iov_base) + piece;
      buffer.iov_len -= piece;
      bytes -= piece;
      skip_done();
    }
  }
  void skip_done() {
    while (first < buffers.size() && buffers[first].iov_len == 0) ++first;
  }
  void zero_rest() {
    for (; first < buffers.size(); ++first) {
      std::memset(buffers[first].iov_base, 0, buffers[first].iov_len);
    }
  }
};

}  // namespace blockdev
