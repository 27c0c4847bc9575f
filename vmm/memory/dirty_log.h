// DirtyLog: which pages of RAM *we* have written.
//
// KVM's dirty log sees the guest's writes only. Whatever the VMM, a device or io_uring writes into
// guest memory is recorded here; a revert takes the union of both. Asynchronous writes are marked
// when they are submitted: marking early is safe, because a revert drains them before it collects.
//
// Thread: mark() from any thread, also during collect(); collect() from one thread at a time.

#pragma once

#include <atomic>
#include <vector>

#include "vmm/base/types.h"
#include "vmm/memory/page_set.h"

namespace memory {

class DirtyLog final {
 public:
  explicit DirtyLog(u64 page_count)
      : words_((page_count + 63) / 64),
        occupied_((words_.size() + kGroupWords - 1) / kGroupWords) {}

  // Every page that [offset, offset + length) touches, the last one included; none for length 0.
  // REQUIRES: the range lies within RAM.
  void mark(u64 ram_offset, u64 length);

  // Adds the marked pages to `pages` and leaves the log empty. A page that is being marked is found
  // now or by the next call.
  void collect(PageSet& pages);

 private:
  static constexpr u64 kGroupWords = 64;

  std::vector<std::atomic<u64>> words_;
  // Whether there can be pages in each group of words; set after the words, taken before them.
  std::vector<std::atomic<u8>> occupied_;
};

}  // namespace memory
