// SparseImage: the bytes of a file as pages that copies share, so that thousands of variants of one
// image cost what they differ in.
//
// Thread: one.

#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "vmm/base/fd.h"
#include "vmm/base/types.h"

namespace blockdev::test {

class SparseImage final {
 public:
  static SparseImage read(const base::Fd& fd);

  u64 size_bytes() const { return size_; }
  void write(u64 offset, std::span<const u8> bytes);  // extends
  void punch(u64 offset, u64 length);                 // keeps the size
  void truncate(u64 size);
  // Equal for equal content and, but for chance, for nothing else.
  u64 hash() const;
  bool operator==(const SparseImage& other) const { return hash() == other.hash(); }

 private:
  friend class ImageSlot;
  static constexpr u64 kPageBytes = 4096;
  struct Page {
    std::vector<u8> bytes = std::vector<u8>(kPageBytes, 0);
    mutable u64 hash = 0;  // of its content; 0: not known yet
  };
  using Pages = std::map<u64, std::shared_ptr<const Page>>;

  std::span<u8> writable_page(u64 index);
  void zero(u64 offset, u64 length);

  Pages pages_;  // what is missing is zeros
  u64 size_ = 0;
};

// A file that becomes one image after the other; only what differs from the one before is written.
class ImageSlot final {
 public:
  explicit ImageSlot(base::Fd fd) : fd_(std::move(fd)) {}
  static ImageSlot in_memory();

  void hold(const SparseImage& image);
  const base::Fd& fd() const { return fd_; }

 private:
  base::Fd fd_;
  SparseImage held_;
};

}  // namespace blockdev::test
