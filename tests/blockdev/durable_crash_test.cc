// After a loss of power at any moment, an image checks clean or with leaks only, every flushed
// sector is there, and every other one is old or new.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <iostream>

#include "tests/blockdev/support/crash_run.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/soak.h"
#include "tests/blockdev/support/test_engines.h"

namespace blockdev::test {
namespace {

TEST(CrashReplay, ARawDiskKeepsItsPromise) {
  SKIP_WITHOUT_QEMU_DAEMON();
  const TempDir dir;
  QemuDaemon daemon(dir.root());
  CrashPlan plan;
  plan.shape = {.format = ImageFormat::raw, .size_bytes = 300 * base::kKiB, .filled = 0.5};
  plan.requests = 120;
  plan.request_sectors = 40;
  const CrashOutcome outcome = run_crash_plan(plan, dir.root(), daemon);
  EXPECT_EQ(outcome.violations, std::vector<std::string>{});
  EXPECT_GT(outcome.counts.different, 500u);
}

TEST(CrashReplay, TheRigNoticesADroppedSync) {
  SKIP_WITHOUT_QEMU_DAEMON();
  const TempDir dir;
  QemuDaemon daemon(dir.root());
  CrashPlan plan;
  plan.shape = {.format = ImageFormat::raw, .size_bytes = 300 * base::kKiB, .filled = 0.5};
  plan.wrap_engines = dropping_syncs;
  EXPECT_NE(run_crash_plan(plan, dir.root(), daemon).violations, std::vector<std::string>{});
}

constexpr RequestMix kMostlyWrites{.writes = 80, .zeroes = 4, .discards = 2, .flushes = 10};

// Each grows something: L2 tables all of them, refcount blocks of 64 clusters the first two, others
// what they are called.
const CrashPlan kPlans[] = {
    {.name = "small_clusters",
     .shape = {.cluster_bits = 9, .refcount_bits = 64, .size_bytes = 300 * base::kKiB},
     .requests = 90,
     .request_sectors = 12,
     .qemu_share = 3},
    {.name = "refcount_table",
     .shape =
         {.cluster_bits = 9, .refcount_bits = 64, .size_bytes = 3000 * base::kKiB, .filled = 0.86},
     .requests = 16,
     .mix = kMostlyWrites,
     .request_sectors = 100,
     .qemu_share = 30},
    {.name = "l1_table",
     .shape = {.cluster_bits = 9, .size_bytes = 1200 * base::kKiB, .filled = 0.1},
     .requests = 60,
     .grows = 2,
     .qemu_share = 3},
    {.name = "growth_over_longer_backing",
     .shape = {.cluster_bits = 9,
               .size_bytes = 200 * base::kKiB,
               .below = {BelowKind::qcow2},
               .below_extra_bytes = 700 * base::kKiB,
               .filled = 0.3},
     .requests = 60,
     .grows = 2,
     .qemu_share = 3},
    {.name = "overlay",
     .shape = {.cluster_bits = 12,
               .size_bytes = 512 * base::kKiB,
               .below = {BelowKind::qcow2, BelowKind::raw},
               .filled = 0.4,
               .has_compressed = true},
     .qemu_share = 3},
    {.name = "extended",
     .shape = {.cluster_bits = 14,
               .is_extended = true,
               .refcount_bits = 1,
               .size_bytes = base::kMiB,
               .below = {BelowKind::qcow2},
               .filled = 0.3},
     .request_sectors = 40,
     .qemu_share = 3},
    {.name = "version_2",
     .shape = {.version = 2,
               .cluster_bits = 12,
               .size_bytes = 512 * base::kKiB,
               .filled = 0.4,
               .has_compressed = true},
     .qemu_share = 3},
    {.name = "extended_compressed",
     .shape = {.cluster_bits = 14,
               .is_extended = true,
               .refcount_bits = 8,
               .size_bytes = base::kMiB,
               .below = {BelowKind::compressed},
               .filled = 0.5,
               .has_compressed = true},
     .request_sectors = 40,
     .qemu_share = 3},
    {.name = "refcounts_of_4_bits",
     .shape = {.cluster_bits = 9,
               .refcount_bits = 4,
               .size_bytes = 600 * base::kKiB,
               .filled = 0.4,
               .has_compressed = true},
     .requests = 40,
     .request_sectors = 12,
     .qemu_share = 8},
    {.name = "large_clusters",
     .shape = {.cluster_bits = 18,
               .refcount_bits = 32,
               .size_bytes = 3 * base::kMiB,
               .below = {BelowKind::qcow2},
               .filled = 0.3},
     .requests = 40,
     .request_sectors = 100,
     .qemu_share = 3},
    {.name = "default",
     .shape = {.cluster_bits = 16, .size_bytes = base::kMiB, .below = {BelowKind::raw}},
     .request_sectors = 80,
     .qemu_share = 3}};

class Crashes : public testing::TestWithParam<CrashPlan> {};

TEST_P(Crashes, KeepThePromise) {
  SKIP_WITHOUT_QEMU_DAEMON();
  const TempDir dir("/dev/shm");
  QemuDaemon daemon(dir.root());
  const Soak soak;
  CrashPlan plan = GetParam();
  CrashOutcome sum;
  do {
    plan.seed = soak.first_seed() + sum.operations;
    plan.crash.seed = plan.seed;
    const CrashOutcome outcome = run_crash_plan(plan, dir.root(), daemon);
    ASSERT_EQ(outcome.violations, std::vector<std::string>{}) << "seed " << plan.seed;
    EXPECT_TRUE(outcome.l1_table_grew || plan.name != std::string("l1_table"));
    EXPECT_TRUE(outcome.refcount_table_grew || plan.name != std::string("refcount_table"));
    sum.operations += outcome.operations;
    sum.by_qemu += outcome.by_qemu;
    sum.counts.built += outcome.counts.built;
    sum.counts.different += outcome.counts.different;
  } while (soak.is_long() && !soak.is_over());
  std::cout << fmt::format("{} operations, {} images built, {} different, {} of them to qemu-img\n",
                           sum.operations, sum.counts.built, sum.counts.different, sum.by_qemu);
  EXPECT_GT(sum.by_qemu, 100u);
  EXPECT_GT(sum.counts.different, 300u);
}

INSTANTIATE_TEST_SUITE_P(Plans, Crashes, testing::ValuesIn(kPlans),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace blockdev::test
