#include "vmm/memory/page_set.h"

#include <algorithm>

#include "vmm/base/check.h"

namespace memory {

void PageSet::find_occupied() {
  for (u64 group = 0; group < occupied_.size(); ++group) {
    const u64 end = std::min((group + 1) * kGroupWords, u64{words_.size()});
    u64 any = 0;
    for (u64 index = group * kGroupWords; index < end; ++index) any |= words_[index];
    occupied_[group] = any != 0 ? 1 : 0;
  }
}

void PageSet::insert_all() {
  std::ranges::fill(words_, ~u64{0});
  if (page_count_ % 64 != 0) words_.back() = (u64{1} << (page_count_ % 64)) - 1;
  std::ranges::fill(occupied_, u8{1});
}

void PageSet::unite(const PageSet& other) {
  CHECK(other.page_count_ == page_count_);
  for (u64 i = other.next_word(0); i < words_.size(); i = other.next_word(i + 1)) {
    if (other.words_[i] != 0) insert_word(i, other.words_[i]);
  }
}

void PageSet::reset() {
  for (u64 i = next_word(0); i < words_.size(); i = next_word(i + 1)) words_[i] = 0;
  std::ranges::fill(occupied_, u8{0});
}

u64 PageSet::count() const {
  u64 total = 0;
  for (u64 i = next_word(0); i < words_.size(); i = next_word(i + 1)) {
    // Nearly all are empty, and without SSE 4.2 counting is a call.
    if (words_[i] != 0) total += static_cast<u64>(std::popcount(words_[i]));
  }
  return total;
}

}  // namespace memory
