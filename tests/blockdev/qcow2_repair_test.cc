// Repair beside qemu-img check -r, on every damage of the table: where qemu-img gets an image
// clean, so do we, with the same content; where it does not, ours is no worse than before.

#include "blockdev/qcow2_repair.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cstddef>

#include "tests/blockdev/support/damaged_image.h"

namespace blockdev::test {
namespace {

using qcow2::RepairReport;
using qcow2::RepairScope;

// Empty: it cannot be read.
std::vector<u8> content_of(const TempDir& dir, const std::string& image) {
  const std::string raw = dir.path("content.raw");
  const std::string command = fmt::format("qemu-img convert -f qcow2 -O raw {} {}", image, raw);
  return run_command(command).status == 0 ? read_file(raw) : std::vector<u8>();
}

int check_status(const std::string& image) {
  return run_command("(qemu-img check -f qcow2 " + image + " >/dev/null 2>&1)").status;
}

Result<RepairReport> repair(const std::string& image, RepairScope scope) {
  const base::Fd fd = base::open_file(image, O_RDWR).value();
  return qcow2::repair_image(fd, scope);
}

class RepairOf : public testing::TestWithParam<Damage> {
 protected:
  void make_damaged(const std::string& image, const char* options, bool has_snapshot) {
    make_image(image, options);
    if (has_snapshot) {
      run_ok("qemu-img snapshot -c one " + image);
      run_ok("qemu-io -f qcow2 -c 'write -q -P 7 64k 400k' " + image);
    }
    GetParam().inflict(Tables(image));
  }

  void repair_and_compare(const char* options, bool has_snapshot) {
    SCOPED_TRACE(options);
    const TempDir dir;
    const std::string ours = dir.path("ours.qcow2");
    const std::string theirs = dir.path("theirs.qcow2");
    make_damaged(ours, options, has_snapshot);
    run_ok(fmt::format("cp {} {}", ours, theirs));
    const int before = check_status(ours);
    const std::vector<u8> content = content_of(dir, ours);
    run_command(fmt::format("(qemu-img check -f qcow2 -r all {} >/dev/null 2>&1)", theirs));
    const Result<RepairReport> report = repair(ours, RepairScope::all);
    const int after = check_status(ours);
    EXPECT_EQ(content_of(dir, ours), content) << "a repair never changes what the disk holds";
    if (check_status(theirs) == kClean) {
      ASSERT_TRUE(report) << report.error().message();
      EXPECT_EQ(after, kClean);
      EXPECT_EQ(report->after.corruptions + report->after.leaks, 0u);
    } else {
      EXPECT_TRUE(after == kClean || after == before) << after << " after " << before;
    }
  }

  void repair_leaks(const char* options, bool has_snapshot) {
    SCOPED_TRACE(options);
    const TempDir dir;
    const std::string image = dir.path("a.qcow2");
    make_damaged(image, options, has_snapshot);
    const int before = check_status(image);
    const std::vector<u8> content = content_of(dir, image);
    const Result<RepairReport> report = repair(image, RepairScope::leaks);
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_EQ(content_of(dir, image), content);
    const int after = check_status(image);
    const bool was_only_leaks = before == kLeaks || before == kClean;
    EXPECT_TRUE(after == kClean || (!was_only_leaks && after == before)) << after;
    EXPECT_EQ(report->after.corruptions != 0, after == kCorrupt);
  }
};

TEST_P(RepairOf, DamageGetsAsFarAsQemuDoes) {
  SKIP_WITHOUT_QEMU_TOOLS();
  repair_and_compare("compat=1.1", false);
  repair_and_compare("compat=0.10,cluster_size=4k", true);
  repair_and_compare("extended_l2=on,cluster_size=16k", false);
}

TEST_P(RepairOf, DamageByLeaksAloneTouchesNothingElse) {
  SKIP_WITHOUT_QEMU_TOOLS();
  repair_leaks("compat=1.1", false);
  repair_leaks("compat=0.10,cluster_size=4k", true);
}

INSTANTIATE_TEST_SUITE_P(Table, RepairOf, testing::ValuesIn(kDamages),
                         [](const auto& test) { return std::string(test.param.name); });

// Refcounts of every width, all of them lost: the structure is written anew.
TEST(Qcow2Repair, LostRefcountsOfEveryWidthAreCountedAnew) {
  SKIP_WITHOUT_QEMU_TOOLS();
  for (const char* options : {"refcount_bits=1,cluster_size=512", "refcount_bits=2,cluster_size=4k",
                              "refcount_bits=4", "refcount_bits=8,cluster_size=512",
                              "refcount_bits=32", "refcount_bits=64,cluster_size=1k"}) {
    SCOPED_TRACE(options);
    const TempDir dir;
    const std::string image = dir.path("a.qcow2");
    make_image(image, options);
    const std::vector<u8> content = content_of(dir, image);
    const u64 table = be64_at(read_file(image), 48);
    poke_be64(image, table, 0);
    poke_be64(image, table + 8, 7);
    EXPECT_EQ(check_status(image), kCorrupt);
    ASSERT_TRUE(repair(image, RepairScope::all));
    EXPECT_EQ(check_status(image), kClean);
    EXPECT_EQ(content_of(dir, image), content);
    run_ok("qemu-io -f qcow2 -c 'write -q -P 9 2M 4M' " + image);
    EXPECT_EQ(check_status(image), kClean);
  }
}

// What a killed writer leaves of an image with lazy refcounts.
TEST(Qcow2Repair, DirtyImageOfLazyRefcountsIsRepairedAsQemuRepairsIt) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string ours = dir.path("ours.qcow2");
  const std::string theirs = dir.path("theirs.qcow2");
  make_image(ours, "lazy_refcounts=on");
  run_command("qemu-io -f qcow2 -c 'write -q -P 6 5M 2M' -c flush -c abort " + ours);
  run_ok(fmt::format("cp {} {}", ours, theirs));
  EXPECT_EQ(check_status(ours), kCorrupt);
  EXPECT_NE(be64_at(read_file(ours), 72) & qcow2::kDirty, 0u);
  run_command("qemu-img check -q -f qcow2 -r all " + theirs);
  const Result<RepairReport> report = repair(ours, RepairScope::all);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_GT(report->corruptions_fixed, 0u);
  EXPECT_EQ(check_status(ours), kClean);
  EXPECT_EQ(be64_at(read_file(ours), 72) & qcow2::kDirty, 0u);
  EXPECT_EQ(content_of(dir, ours), content_of(dir, theirs));
  EXPECT_EQ(check_status(theirs), kClean);
}

// qemu-img frees what an entry that it cannot read may have referred to.
TEST(Qcow2Repair, NothingIsFreedWhileAnEntryMakesNoSense) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string image = dir.path("a.qcow2");
  make_image(image, "compat=1.1");
  const Tables tables(image);
  const u64 l1_entry = tables.at(tables.l1);
  tables.poke(tables.l1, l1_entry ^ u64{1} << 40);  // far outside the file
  const Result<RepairReport> report = repair(image, RepairScope::all);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_GT(report->after.leaks, 0u);
  EXPECT_GT(report->after.corruptions, 0u);
  tables.poke(tables.l1, l1_entry);  // found again
  EXPECT_EQ(check_status(image), kClean);
}

// What an entry of the L1 table takes for a table may be what the guest has written.
TEST(Qcow2Repair, DataIsNotTakenForATable) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string image = dir.path("a.qcow2");
  make_image(image, "cluster_size=4k");
  const Tables tables(image);
  for (u64 i = 0; i < tables.cluster / 8; ++i) {
    poke_be64(image, tables.data + i * 8, qcow2::kCopied | (100 + i) << 12);
  }
  poke_be64(image, tables.l1 + 8, qcow2::kCopied | (tables.data + 0x200));
  const std::vector<u8> before = read_file(image);
  ASSERT_TRUE(repair(image, RepairScope::all));
  const std::vector<u8> after = read_file(image);
  const auto data = [&](const std::vector<u8>& file) {
    const auto first = file.begin() + static_cast<std::ptrdiff_t>(tables.data);
    return std::vector<u8>(first, first + static_cast<std::ptrdiff_t>(tables.cluster));
  };
  EXPECT_EQ(data(after), data(before));
}

// The file ends within the block whose refcounts are raised, and has a leak in it too.
TEST(Qcow2Repair, BlockAtTheEndOfTheFileIsRepairedAtOnce) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string image = dir.path("a.qcow2");
  make_image(image, "compat=1.1");
  const std::vector<u8> content = content_of(dir, image);
  const Tables tables(image);
  const u64 end = base::align_up(tables.file.size(), tables.cluster);
  std::vector<u8> block(
      tables.file.begin() + static_cast<std::ptrdiff_t>(tables.refcount_block),
      tables.file.begin() + static_cast<std::ptrdiff_t>(tables.refcount_block) + 8);
  poke_file(image, end, block);  // of the first four clusters: all others count nothing
  tables.poke(tables.refcount_table, end);
  EXPECT_EQ(check_status(image), kCorrupt);
  ASSERT_TRUE(repair(image, RepairScope::all));
  EXPECT_EQ(check_status(image), kClean);
  EXPECT_EQ(content_of(dir, image), content);
}

TEST(Qcow2Repair, SoundImageIsNotTouched) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string image = dir.path("a.qcow2");
  make_image(image, "compat=1.1");
  const std::vector<u8> before = read_file(image);
  ASSERT_TRUE(repair(image, RepairScope::all));
  EXPECT_EQ(read_file(image), before);
}

}  // namespace
}  // namespace blockdev::test
