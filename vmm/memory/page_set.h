// PageSet: a set of 4 KiB pages of RAM, by RAM offset (never by guest-physical address), as a bitmap
// of 64-bit words, bit 0 of word 0 first. The same layout as KVM's dirty log.
//
// A revert touches few pages of much memory, and goes over such sets a dozen times. So one bit more
// for each group of words says where pages can be: what is empty is passed over 16 MiB at a time.
//
// Invariant: a group whose bit is clear holds no page. (One whose bit is set may be empty.)
// Thread: not thread-safe; DirtyLog is the concurrent one.

#pragma once

#include <bit>
#include <span>
#include <vector>

#include "vmm/base/types.h"

namespace memory {

class PageSet final {
 public:
  PageSet() = default;
  explicit PageSet(u64 page_count)
      : page_count_(page_count),
        words_((page_count + 63) / 64),
        occupied_((words_.size() + kGroupWords - 1) / kGroupWords, 0) {}

  u64 page_count() const { return page_count_; }
  std::span<const u64> words() const { return words_; }
  // To be filled by others: find_occupied() has to follow.
  std::span<u64> words_to_fill() { return words_; }
  void find_occupied();

  void insert(u64 page) { insert_word(page / 64, u64{1} << (page % 64)); }
  // The pages of one word.
  void insert_word(u64 index, u64 bits) {
    words_[index] |= bits;
    occupied_[index / kGroupWords] = 1;
  }
  // Where to look next, from word `index` on: itself, or the first word after empty groups. Both may
  // be the end.
  u64 next_word(u64 index) const {
    while (index < words_.size() && occupied_[index / kGroupWords] == 0) {
      index = (index / kGroupWords + 1) * kGroupWords;
    }
    return index;
  }
  bool contains(u64 page) const { return (words_[page / 64] >> (page % 64) & 1) != 0; }
  void insert_all();
  void unite(const PageSet& other);
  void reset();
  u64 count() const;
  bool empty() const { return count() == 0; }

  // Calls visit(first_page, page_count) for every maximal run, lowest first.
  template <class Visit>
  void for_each_run(Visit visit) const {
    u64 run_start = 0;
    u64 run_length = 0;
    for (u64 index = next_word(0); index < words_.size(); index = next_word(index + 1)) {
      u64 word = words_[index];
      while (word != 0) {
        const u64 skip = static_cast<u64>(std::countr_zero(word));
        const u64 ones = static_cast<u64>(std::countr_one(word >> skip));
        const u64 first = index * 64 + skip;
        if (run_length != 0 && run_start + run_length == first) {
          run_length += ones;
        } else {
          if (run_length != 0) visit(run_start, run_length);
          run_start = first;
          run_length = ones;
        }
        word = skip + ones == 64 ? 0 : word & ~(((u64{1} << ones) - 1) << skip);
      }
    }
    if (run_length != 0) visit(run_start, run_length);
  }

  friend bool operator==(const PageSet& left, const PageSet& right) {
    return left.page_count_ == right.page_count_ && left.words_ == right.words_;
  }

 private:
  static constexpr u64 kGroupWords = 64;

  u64 page_count_ = 0;
  std::vector<u64> words_;
  std::vector<u8> occupied_;  // derived from words_: 0 or 1 for each group
};

}  // namespace memory
