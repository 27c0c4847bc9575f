// WriteFill: what must be written around a request's bytes, because a whole (sub)cluster becomes
// visible at once: what the stack holds there.
//
// In a place that never held anything, zeros at the outer edges are left out: it reads as zeros.

#pragma once

#include <span>
#include <vector>

#include "blockdev/layer.h"
#include "blockdev/writable_image.h"

namespace blockdev {

// The disk that is written to, as it reads now.
struct DiskContent {
  const LayerList& layers;
  u64 size_bytes = 0;
};

class WriteFill final {
 public:
  // Something that lies in a file, and where it is to be read to.
  struct FileRead {
    Extent extent;
    std::span<u8> to;
  };

  // `range`: what the request writes of plan.covered. Appends to `reads` what the caller must read
  // before it writes; the memory stays until the next call.
  Result<void> collect(const DiskContent& content, const WriteStep& plan, ByteRange range,
                       ReadScratch& scratch, std::vector<FileRead>& reads);

  // What to write before and after the request's bytes.
  std::span<u8> head() { return head_.used(); }
  std::span<u8> tail() { return tail_.used(); }
  // Gives memory back where clusters are large.
  void shrink(u64 limit);

 private:
  struct Part {
    ByteRange range;
    std::vector<u8> bytes;
    u64 first = 0;  // [first, last) of it is to be written
    u64 last = 0;
    std::vector<ByteRange> zeros;
    u64 content_first = 0;  // [content_first, content_last) has all that is not zero
    u64 content_last = 0;

    void start(ByteRange of_disk);
    void add_content(u64 at, u64 length);
    void fill_zeros();
    std::span<u8> used() { return std::span(bytes).subspan(first, last - first); }
  };

  Result<void> collect_part(const DiskContent& content, Part& part, ReadScratch& scratch,
                            std::vector<FileRead>& reads);

  Part head_;
  Part tail_;
};

}  // namespace blockdev
