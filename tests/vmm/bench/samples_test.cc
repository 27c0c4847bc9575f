#include "vmm/bench/samples.h"

#include <gtest/gtest.h>

#include "vmm/bench/resident_memory.h"

namespace bench {
namespace {

TEST(Samples, PercentileIsTheNearestRank) {
  Samples samples;
  for (int value = 100; value >= 1; --value) samples.add(value);
  EXPECT_EQ(samples.median(), 50);
  EXPECT_EQ(samples.percentile(99), 99);
  EXPECT_EQ(samples.percentile(100), 100);
  EXPECT_EQ(samples.percentile(0), 1);
}

TEST(Samples, NothingMeasuredIsZero) { EXPECT_EQ(Samples().median(), 0); }

TEST(Line, FitsAStraightLineExactly) {
  const Line line = fit_line({{0.25, 105}, {1, 120}, {8, 260}});
  EXPECT_NEAR(line.slope, 20, 1e-9);
  EXPECT_NEAR(line.offset, 100, 1e-9);
}

TEST(ResidentMemory, LeavesOutRamAndSnapshotsFiles) {
  constexpr char kSmaps[] =
      "7f0000000000-7f0010000000 rw-p 00000000 00:00 0 \n"
      "Size:             262144 kB\n"
      "Rss:               40960 kB\n"
      "7f0020000000-7f0020001000 r--s 00000000 00:1a 7  /x/snapshots/1/memory\n"
      "Rss:                   4 kB\n"
      "7f0030000000-7f0030100000 r-xp 00000000 00:1a 8  /x/quicksave\n"
      "Rss:                 512 kB\n"
      "Pss:                  99 kB\n"
      "7f0040000000-7f0040100000 rw-p 00000000 00:00 0  [heap]\n"
      "Rss:                 100 kB";
  const ResidentMemory memory = resident_memory(kSmaps, 256 * base::kMiB, "/x/snapshots");
  EXPECT_EQ(memory.own_bytes, 612 * base::kKiB);
  EXPECT_EQ(memory.guest_bytes, 40964 * base::kKiB);
}

}  // namespace
}  // namespace bench
