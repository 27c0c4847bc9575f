#include "vmm/memory/dirty_log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

namespace {

using memory::DirtyLog;
using memory::PageSet;

std::vector<u64> marked(u64 offset, u64 length) {
  DirtyLog log(256);
  log.mark(offset, length);
  PageSet pages(256);
  log.collect(pages);
  std::vector<u64> list;
  pages.for_each_run([&](u64 first, u64 count) {
    for (u64 page = first; page < first + count; ++page) list.push_back(page);
  });
  return list;
}

TEST(DirtyLog, ZeroLengthMarksNothing) { EXPECT_TRUE(marked(4096, 0).empty()); }
TEST(DirtyLog, OneByteMarksItsPage) { EXPECT_EQ(marked(4095, 1), std::vector<u64>{0}); }
TEST(DirtyLog, UnalignedWriteMarksTheTailPage) {
  EXPECT_EQ(marked(4095, 4098), (std::vector<u64>{0, 1, 2}));
}
TEST(DirtyLog, EndOnAPageBoundaryDoesNotMarkTheNextPage) {
  EXPECT_EQ(marked(0, 4096), std::vector<u64>{0});
}
TEST(DirtyLog, RangeOverSeveralWordsIsComplete) {
  EXPECT_EQ(marked(63 * 4096, 130 * 4096).size(), 130u);
}

TEST(DirtyLog, CollectLeavesItEmpty) {
  DirtyLog log(256);
  log.mark(0, 4096);
  PageSet pages(256);
  log.collect(pages);
  pages.reset();
  log.collect(pages);
  EXPECT_TRUE(pages.empty());
}

TEST(DirtyLog, MarksFromSeveralThreadsAreAllKept) {
  DirtyLog log(4096);
  std::vector<std::jthread> threads;
  for (u64 t = 0; t < 4; ++t) {
    threads.emplace_back([&log, t] {
      for (u64 page = t; page < 4096; page += 4) log.mark(page * 4096 + 17, 8);
    });
  }
  threads.clear();
  PageSet pages(4096);
  log.collect(pages);
  EXPECT_EQ(pages.count(), 4096u);
}

TEST(DirtyLog, FarApartPagesOfMuchMemoryAreCollectedTwice) {
  constexpr u64 kPages = 3 * 4096 + 5;  // the last group is not full
  DirtyLog log(kPages);
  for (int round = 0; round < 2; ++round) {
    for (const u64 page : {u64{0}, u64{4095}, u64{4096}, kPages - 1}) log.mark(page * 4096, 1);
    PageSet pages(kPages);
    log.collect(pages);
    EXPECT_EQ(pages.count(), 4u);
    EXPECT_TRUE(pages.contains(kPages - 1));
  }
}

// Every operation against the same on a plain list, over groups that are full, empty and cut.
TEST(PageSet, PassesOverNothingThatIsThere) {
  constexpr u64 kPages = 5 * 4096 + 77;
  for (u64 seed = 1; seed < 200; ++seed) {
    PageSet left(kPages);
    PageSet right(kPages);
    std::vector<bool> expected(kPages);
    for (u64 i = 0; i < seed % 7; ++i) {
      const u64 page = (seed * 2654435761u + i * 40503u * seed) % kPages;
      (i % 2 == 0 ? left : right).insert(page);
      expected[page] = true;
    }
    right.words_to_fill()[seed % 320] |= 1;
    expected[seed % 320 * 64] = true;
    right.find_occupied();
    left.unite(right);
    std::vector<bool> found(kPages);
    left.for_each_run([&](u64 first, u64 count) {
      for (u64 page = first; page < first + count; ++page) found[page] = true;
    });
    ASSERT_EQ(found, expected) << "seed " << seed;
    ASSERT_EQ(left.count(), static_cast<u64>(std::count(expected.begin(), expected.end(), true)));
    left.reset();
    ASSERT_EQ(left, PageSet(kPages));
  }
}

TEST(PageSet, RunsJoinAcrossWords) {
  PageSet pages(256);
  for (u64 page = 60; page < 200; ++page) pages.insert(page);
  pages.insert(255);
  std::vector<std::pair<u64, u64>> runs;
  pages.for_each_run([&](u64 first, u64 count) { runs.emplace_back(first, count); });
  EXPECT_EQ(runs, (std::vector<std::pair<u64, u64>>{{60, 140}, {255, 1}}));
}

TEST(PageSet, InsertAllStopsAtTheLastPage) {
  PageSet pages(70);
  pages.insert_all();
  EXPECT_EQ(pages.count(), 70u);
}

}  // namespace
