#include "vmm/memory/page_set.h"

#include <algorithm>

#include "vmm/base/check.h"

namespace memory {

void PageSet::insert_all() {
  std::ranges::fill(words_, ~u64{0});
  if (page_count_ % 64 != 0) words_.back() = (u64{1} << (page_count_ % 64)) - 1;
}

void PageSet::unite(const PageSet& other) {
  CHECK(other.page_count_ == page_count_);
  for (u64 i = 0; i < words_.size(); ++i) {
    if (other.words_[i] != 0) words_[i] |= other.words_[i];
  }
}

void PageSet::reset() { std::ranges::fill(words_, 0); }

u64 PageSet::count() const {
  u64 total = 0;
  for (const u64 word : words_) {
    // Nearly all are empty, and without SSE 4.2 counting is a call.
    if (word != 0) total += static_cast<u64>(std::popcount(word));
  }
  return total;
}

}  // namespace memory
