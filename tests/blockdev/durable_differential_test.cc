// Model, ours and QEMU given the same requests. In CI a fixed number of them, from fixed seeds:
//
//   QUICKSAVE_SOAK_SECONDS=3600 QUICKSAVE_SOAK_SEED=7 build/release/tests/blockdev_tests
//   --gtest_filter='*DifferentialFuzz.*'
//
// goes on for an hour from another seed (sh tests/disk_soak.sh does, with the crash replay).

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <iostream>

#include "tests/blockdev/support/differential.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/soak.h"

namespace blockdev::test {
namespace {

// Together 200,000 requests: parts run beside each other.
constexpr u64 kParts = 5;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr u64 kRequestsEach = 2'000;
#else
constexpr u64 kRequestsEach = 40'000;
#endif

class DifferentialFuzz : public testing::TestWithParam<u64> {};

TEST_P(DifferentialFuzz, OursAndQemuAgreeAndGoOnWithEachOthersImages) {
  SKIP_WITHOUT_QEMU_DAEMON();
  const TempDir dir("/dev/shm");
  QemuDaemon daemon(dir.root());
  DifferentialCounts counts;
  Differential differential(dir.root(), daemon, counts);
  const Soak soak;
  for (u64 seed = soak.first_seed() + GetParam(); counts.violations.empty(); seed += kParts) {
    if (soak.is_long() ? soak.is_over() : counts.requests >= kRequestsEach) break;
    const ImageShape shape = random_shape(seed);
    // COW of a large cluster costs what copying it does.
    const u32 requests = shape.cluster_bits <= 16 ? 250 : shape.cluster_bits <= 18 ? 100 : 30;
    differential.run(shape, seed, 12, requests);
  }
  std::cout << fmt::format(
                   "{} requests in {} scenarios, {} reopenings, {} swaps, {} resizes, {} checks by "
                   "qemu-img\n",
                   counts.requests, counts.scenarios, counts.reopenings, counts.swaps,
                   counts.resizes, counts.qemu_checks)
            << counts.reached.table() << "\n";
  EXPECT_EQ(counts.violations, std::vector<std::string>{});
}

INSTANTIATE_TEST_SUITE_P(Parts, DifferentialFuzz, testing::Range(u64{0}, kParts));

}  // namespace
}  // namespace blockdev::test
