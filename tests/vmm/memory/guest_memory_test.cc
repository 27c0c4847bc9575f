#include "vmm/memory/guest_memory.h"

#include <gtest/gtest.h>

namespace {

using memory::GuestMemory;

TEST(GuestMemory, RangeAcrossTheEndOfRamIsRefused) {
  auto memory = *GuestMemory::create(base::kMiB);
  EXPECT_TRUE(memory->readable(Gpa{base::kMiB - 1}, 1));
  EXPECT_FALSE(memory->readable(Gpa{base::kMiB - 1}, 2));
  EXPECT_FALSE(memory->readable(Gpa{~u64{0}}, 2));
}

TEST(GuestMemory, RamAboveTheHoleFollowsInTheMapping) {
  auto memory = *GuestMemory::create(4 * base::kGiB);
  ASSERT_EQ(memory->regions().size(), 2u);
  EXPECT_EQ(memory->ram_offset(Gpa{4 * base::kGiB}, 1), 3 * base::kGiB);
  EXPECT_FALSE(memory->ram_offset(Gpa{3 * base::kGiB}, 1));
  EXPECT_FALSE(memory->ram_offset(Gpa{3 * base::kGiB - 1}, 2));
}

TEST(GuestMemory, WriteMarksBothPagesItTouches) {
  auto memory = *GuestMemory::create(base::kMiB);
  ASSERT_TRUE(memory->write(Gpa{4094}, le32{7}));
  EXPECT_EQ(memory->read<le32>(Gpa{4094}), 7u);
  memory::PageSet pages(memory->page_count());
  memory->dirty_log().collect(pages);
  EXPECT_TRUE(pages.contains(0) && pages.contains(1) && pages.count() == 2);
}

TEST(GuestMemory, RefusedWriteMarksNothing) {
  auto memory = *GuestMemory::create(base::kMiB);
  EXPECT_FALSE(memory->write(Gpa{base::kMiB - 2}, le32{7}));
  memory::PageSet pages(memory->page_count());
  memory->dirty_log().collect(pages);
  EXPECT_TRUE(pages.empty());
}

TEST(GuestMemory, SizesOutsideTheLimitsAreRefused) {
  EXPECT_FALSE(GuestMemory::create(0));
  EXPECT_FALSE(GuestMemory::create(base::kMiB + 1));
  EXPECT_FALSE(GuestMemory::create(65 * base::kGiB));
}

}  // namespace
