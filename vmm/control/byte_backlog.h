// ByteBacklog: bytes on their way to a reader, at most so many; what does not fit is counted.
//
// The oldest bytes are kept and the newest dropped, so that what a reader gets has one gap at its
// end and not holes everywhere. Thread: one at a time.

#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "vmm/base/types.h"

namespace control {

class ByteBacklog final {
 public:
  explicit ByteBacklog(u64 limit_bytes) : limit_bytes_(limit_bytes) {}

  void append(std::span<const u8> bytes) {
    const u64 room = limit_bytes_ - std::min(limit_bytes_, size_bytes());
    const u64 taken = std::min<u64>(room, bytes.size());
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.begin() + static_cast<i64>(taken));
    dropped_bytes_ += bytes.size() - taken;
  }

  std::span<const u8> front() const { return std::span(bytes_).subspan(taken_); }
  void remove_front(u64 count) {
    taken_ += count;
    if (taken_ == bytes_.size()) {
      bytes_.clear();
      taken_ = 0;
    } else if (taken_ > bytes_.size() / 2) {
      bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<i64>(taken_));
      taken_ = 0;
    }
  }

  bool empty() const { return taken_ == bytes_.size(); }
  u64 size_bytes() const { return bytes_.size() - taken_; }
  u64 dropped_bytes() const { return dropped_bytes_; }

 private:
  u64 limit_bytes_;
  std::vector<u8> bytes_;
  u64 taken_ = 0;
  u64 dropped_bytes_ = 0;
};

}  // namespace control
