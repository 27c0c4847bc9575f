// MemoryImage: guest memory as it was at one T, immutable, by RAM offset.
//
// Two kinds behind one face:
//   of_file   a read-only view of a memory file;
//   of_copy   the pages that were copied in the pause, packed without gaps, over a base image (the
//             previous snapshot's) or over zeros.
// So a snapshot of a VM that stands on another snapshot copies only what changed since.
//
// A copy is replaced by the view of its file once that is durable; until then the base image lives
// on with it.
//
// A file's holes are not read through the view: on tmpfs a fault in a hole allocates a page, and
// where there is no room left that is a SIGBUS. Where they are is asked at the first use.
//
// Thread: all calls from any thread.

#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/memory/page_set.h"

namespace snapshot {

class MemoryImage final {
 public:
  // Pages that lie side by side in host memory too. `data` is null where all of them are zero.
  struct Piece {
    const u8* data = nullptr;
    u64 page_count = 0;
  };

  // Refuses a file that is not exactly `ram_bytes` long: a short one would answer with SIGBUS.
  // The file must stay as it is while the image lives; `file` may be closed.
  static Result<std::shared_ptr<const MemoryImage>> of_file(const base::Fd& file, u64 ram_bytes);

  // `packed` begins with the content of `pages`, lowest first; the other pages are those of `base`,
  // zeros where it is null.
  static std::shared_ptr<const MemoryImage> of_copy(memory::PageSet pages, base::Mapping packed,
                                                    std::shared_ptr<const MemoryImage> base);

  u64 page_count() const { return page_count_; }
  u64 size_bytes() const { return page_count_ * base::kPageBytes; }

  // The longest piece that starts at `page`, at most `limit` pages.
  // REQUIRES: limit >= 1, page + limit <= page_count().
  Piece piece(u64 page, u64 limit) const;
  // Never null.
  const u8* page(u64 page) const;

  // Host memory that this image alone holds: the copied pages, 0 for the view of a file.
  u64 copied_bytes() const { return copied_.count() * base::kPageBytes; }

  // Finds the holes of a file and maps its other pages now, so that the first revert does not fault
  // them in one by one. Reads the file: for a background thread. Does nothing for a copy.
  void populate() const;

 private:
  MemoryImage(u64 page_count, base::Mapping bytes)
      : page_count_(page_count), bytes_(std::move(bytes)) {}
  const memory::PageSet& pages_in_file() const;

  u64 page_count_;
  base::Mapping bytes_;             // the file, or the packed pages
  memory::PageSet copied_;          // empty set (no words) for a file
  std::vector<u32> packed_before_;  // per word of copied_: pages packed before it
  std::shared_ptr<const MemoryImage> base_;

  // For a file: what is no hole, and the file until that is known.
  mutable std::once_flag holes_known_;
  mutable memory::PageSet in_file_;
  mutable base::Fd file_;
};

}  // namespace snapshot
