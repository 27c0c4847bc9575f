// The proof that the tests of the disk engine can fail. Each fault planted in it
// (vmm/base/planted_fault.h) is noticed by the rig that finds nothing in the sound engine, and for
// the reason that it is wrong. Few requests: a fault that takes an hour to find is not found in CI.

#include "vmm/base/planted_fault.h"

#include <gmock/gmock.h>
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "tests/blockdev/support/crash_run.h"
#include "tests/blockdev/support/differential.h"
#include "tests/blockdev/support/header_exchange.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/schedule.h"

namespace blockdev::test {
namespace {

using testing::Contains;
using testing::HasSubstr;
using Violations = std::vector<std::string>;

// What the judges of tests/blockdev/support say.
constexpr const char* kOurCheck = "the image is corrupt";
constexpr const char* kQemuCheck = "qemu-img check returned 2";
constexpr const char* kCrashLost = "after a crash";
constexpr const char* kUnreadable = "the disk cannot be read";
constexpr const char* kReadWrong = "read sector";

struct PlantedCrash {
  const char* name;
  const char* fault;
  CrashPlan plan;
  std::vector<const char*> findings;  // all of them

  friend void PrintTo(const PlantedCrash& crash, std::ostream* out) { *out << crash.fault; }
};

// Tables come into being all the time.
const CrashPlan kNewTables{
    .shape = {.cluster_bits = 9, .size_bytes = 200 * base::kKiB}, .requests = 30, .qemu_share = 8};
// And refcount blocks, each of 64 clusters.
const CrashPlan kNewBlocks{
    .shape = {.cluster_bits = 9, .refcount_bits = 64, .size_bytes = 200 * base::kKiB},
    .requests = 30,
    .request_sectors = 40,
    .qemu_share = 0};
// The same few clusters are zeroed and written: entries change, refcounts do not.
const CrashPlan kRewriting{
    .shape = {.cluster_bits = 12, .size_bytes = 32 * base::kKiB, .filled = 1},
    .requests = 80,
    .mix = {.writes = 40, .zeroes = 30, .discards = 0, .flushes = 25},
    .qemu_share = 0};
// Clusters are freed.
const CrashPlan kCompressed{.shape = {.cluster_bits = 12,
                                      .size_bytes = 256 * base::kKiB,
                                      .filled = 1,
                                      .has_compressed = true},
                            .requests = 40,
                            .qemu_share = 8};
const CrashPlan kOverlay{
    .shape = {.cluster_bits = 12, .size_bytes = 256 * base::kKiB, .below = {BelowKind::raw}},
    .requests = 60,
    .mix = {.writes = 20, .zeroes = 10, .discards = 20, .flushes = 5},
    .qemu_share = 0};

const PlantedCrash kCrashes[] = {
    {"PhasesOfAFlushInTheWrongOrder", "swap-phases", kNewTables, {kOurCheck, kQemuCheck}},
    {"NoBarrierBetweenThem", "drop-barrier-a", kNewTables, {kOurCheck, kQemuCheck}},
    {"NoBarrierBetweenDataAndEntries", "drop-data-barrier", kRewriting, {kCrashLost}},
    {"NoBarrierAfterTheLinkToARefcountBlock", "drop-link-barrier", kNewBlocks, {kOurCheck}},
    {"NoBarrierBeforeTheFlushIsDone", "drop-barrier-b", kNewTables, {kCrashLost}},
    {"FreeingBeforeTheEntryIsCleared", "free-before-clear", kCompressed, {kUnreadable}},
    {"LowerRefcountsWithTheHigherOnes", "decrement-first", kCompressed, {kOurCheck, kQemuCheck}},
    {"DiscardThatUncoversWhatLiesBelow", "discard-to-unallocated", kOverlay, {kReadWrong}},
};

class PlantedInDisk : public testing::TestWithParam<PlantedCrash> {};

TEST_P(PlantedInDisk, IsNoticed) {
  SKIP_WITHOUT_QEMU_DAEMON();
  const TempDir dir("/dev/shm");
  QemuDaemon daemon(dir.root());
  const PlantedCrash& crash = GetParam();
  EXPECT_EQ(run_crash_plan(crash.plan, dir.root(), daemon).violations, Violations{})
      << "planted: nothing";
  const base::Plant plant(crash.fault);
  const Violations violations = run_crash_plan(crash.plan, dir.root(), daemon).violations;
  for (const char* finding : crash.findings) EXPECT_THAT(violations, Contains(HasSubstr(finding)));
}

INSTANTIATE_TEST_SUITE_P(Crashes, PlantedInDisk, testing::ValuesIn(kCrashes),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(PlantedInDifferential, DiscardThatUncoversIsNoticedBesideQemu) {
  SKIP_WITHOUT_QEMU_DAEMON();
  const TempDir dir("/dev/shm");
  QemuDaemon daemon(dir.root());
  const auto run = [&] {
    DifferentialCounts counts;
    Differential(dir.root(), daemon, counts).run(kOverlay.shape, 1, 2, 100);
    return counts.violations;
  };
  EXPECT_EQ(run(), Violations{});
  const base::Plant plant("discard-to-unallocated");
  EXPECT_NE(run(), Violations{});
}

// What fails in a schedule.
Violations failures_of(const std::function<void()>& run) {
  testing::TestPartResultArray parts;
  {
    testing::ScopedFakeTestPartResultReporter reporter(
        testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &parts);
    run();
  }
  Violations failures;
  for (int i = 0; i < parts.size(); ++i) {
    const testing::TestPartResult& part = parts.GetTestPartResult(i);
    if (part.failed()) failures.push_back(part.message());
  }
  return failures;
}

Violations play_schedule(u64 seed) {
  return failures_of([=] {
    Schedule schedule(schedule_shape(seed), seed);
    schedule.play_random(120);
    schedule.close_and_check();
  });
}

class PlantedInSchedule : public testing::TestWithParam<const char*> {};

TEST_P(PlantedInSchedule, IsNoticed) {
  SKIP_WITHOUT_QEMU_DAEMON();
  for (u64 seed = 1; seed <= 12; ++seed) {
    EXPECT_EQ(play_schedule(seed), Violations{}) << "planted: nothing";
    const base::Plant plant(GetParam());
    if (!play_schedule(seed).empty()) return;
  }
  FAIL() << "nothing was noticed";
}

INSTANTIATE_TEST_SUITE_P(Concurrency, PlantedInSchedule,
                         testing::Values("write-does-not-wait", "discard-does-not-wait",
                                         "publish-early"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

TEST(PlantedInReader, NoSecondLookAtACompressedClusterIsNoticed) {
  SKIP_WITHOUT_QEMU_DAEMON();
  ImageShape shape = small_shape();
  shape.filled = 1;
  shape.has_compressed = true;
  const auto run = [&] {
    return failures_of([&] {
      Schedule schedule(shape);
      schedule.rewrite_under_reader();
      schedule.close_and_check();
    });
  };
  EXPECT_EQ(run(), Violations{});
  const base::Plant plant("no-second-look");
  EXPECT_THAT(run(), Contains(HasSubstr("requests failed")));
}

TEST(PlantedInHeader, WrongMagicIsNoticedByForeignBytes) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  EXPECT_EQ(exchange_backing_formats(dir.root()), Violations{});
  const base::Plant plant("wrong-magic");
  const Violations violations = exchange_backing_formats(dir.root());
  EXPECT_THAT(violations, Contains(HasSubstr("QEMU does not find")));
  EXPECT_THAT(violations, Contains(HasSubstr("we find \"base.raw\" of format \"\"")));
}

}  // namespace
}  // namespace blockdev::test
