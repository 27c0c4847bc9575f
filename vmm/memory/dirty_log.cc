#include "vmm/memory/dirty_log.h"

#include <algorithm>

#include "vmm/base/check.h"

namespace memory {
namespace {

// Bits first..last of one word, both included.
constexpr u64 mask(u64 first, u64 last) { return (~u64{0} >> (63 - last)) & (~u64{0} << first); }

}  // namespace

void DirtyLog::mark(u64 ram_offset, u64 length) {
  if (length == 0) return;
  const u64 first = ram_offset / base::kPageBytes;
  const u64 last = (ram_offset + length - 1) / base::kPageBytes;
  CHECK(last / 64 < words_.size());
  for (u64 index = first / 64; index <= last / 64; ++index) {
    const u64 from = index == first / 64 ? first % 64 : 0;
    const u64 to = index == last / 64 ? last % 64 : 63;
    const u64 bits = mask(from, to);
    // A queue's ring pages are marked again and again: look before taking the cache line.
    if ((words_[index].load(std::memory_order_relaxed) & bits) != bits) {
      words_[index].fetch_or(bits);
    }
    // After the word, both sequentially consistent, and in collect() the other way round: who finds
    // the group marked here is seen there.
    std::atomic<u8>& occupied = occupied_[index / kGroupWords];
    if (occupied.load() == 0) occupied.store(1);
  }
}

void DirtyLog::collect(PageSet& pages) {
  CHECK(pages.words().size() == words_.size());
  for (u64 group = 0; group < occupied_.size(); ++group) {
    if (occupied_[group].load(std::memory_order_relaxed) == 0) continue;
    occupied_[group].exchange(0);
    const u64 end = std::min((group + 1) * kGroupWords, u64{words_.size()});
    for (u64 index = group * kGroupWords; index < end; ++index) {
      if (words_[index].load(std::memory_order_relaxed) == 0) continue;
      pages.insert_word(index, words_[index].exchange(0));
    }
  }
}

}  // namespace memory
