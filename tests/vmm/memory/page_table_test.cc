#include "vmm/memory/page_table.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "vmm/base/ranges.h"

namespace memory {
namespace {

constexpr u64 kUsed = 0x1234'5027;  // present, writable, user, accessed

struct Page {
  Page() : bytes(base::kPageBytes) {}
  void set(std::size_t index, u64 entry) { std::memcpy(&bytes[index * 8], &entry, 8); }
  std::vector<u8> bytes;
};

bool changed(Page now, const Page& then) {
  const bool is_used = rewrite_page(now.bytes.data(), then.bytes.data());
  EXPECT_EQ(now.bytes, then.bytes);
  return is_used;
}

TEST(PageTable, EqualPagesChangeNothing) {
  Page page;
  page.set(3, kUsed);
  EXPECT_FALSE(changed(page, page));
}

TEST(PageTable, UsedEntryThatChangesIsFoundAnywhere) {
  for (std::size_t index = 0; index < 512; ++index) {
    Page now;
    now.set(index, kUsed);
    EXPECT_TRUE(changed(now, Page())) << index;
  }
}

TEST(PageTable, EveryBitOfAUsedEntryCounts) {
  for (u32 bit = 0; bit < 64; ++bit) {
    Page now, then;
    now.set(511, kUsed);
    then.set(511, kUsed ^ u64{1} << bit);
    EXPECT_TRUE(changed(now, then)) << bit;
  }
}

TEST(PageTable, EntryThatWasNotPresentOrNotAccessedHasLeftNothing) {
  for (const u64 entry : {u64{0}, kUsed & ~u64{1}, kUsed & ~u64{0x20}}) {
    Page now, then;
    now.set(7, entry);
    then.set(7, kUsed);
    EXPECT_FALSE(changed(now, then)) << entry;
  }
}

TEST(PageTable, UpperEntryOfFourBytesCounts) {
  Page now;
  now.set(9, kUsed << 32);
  EXPECT_TRUE(changed(now, Page()));
}

TEST(PageTable, UsedEntryThatStaysDoesNotCountForItsNeighbour) {
  Page now, then;
  now.set(0, kUsed);
  then.set(0, kUsed);
  now.set(1, 2);
  EXPECT_FALSE(changed(now, then));
}

}  // namespace
}  // namespace memory
