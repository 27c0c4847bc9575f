#include <gtest/gtest.h>

#include <functional>

#include "vmm/bench/soak.h"

namespace bench {
namespace {

// 100 looks at 10,000 reverts; resident memory and descriptors as functions of the revert.
using OfRevert = std::function<u64(u64)>;
SoakReport report_of(const OfRevert& bytes, const OfRevert& descriptors) {
  SoakReport report;
  report.reverts = 10'000;
  for (u64 revert = 100; revert <= report.reverts; revert += 100) {
    report.samples.push_back({revert, bytes(revert), descriptors(revert)});
  }
  return report;
}

TEST(SoakReport, NoiseAndAFirstTenthThatGrowsAreNoGrowth) {
  const SoakReport report = report_of(
      [](u64 revert) { return 4'000'000 + (revert < 800 ? 0 : 900'000) + revert % 7 * 4096; },
      [](u64 revert) { return revert < 800 ? 30 : 31; });
  EXPECT_TRUE(report.check_growth());
  EXPECT_NE(report.to_text().find("descriptors 31 -> 31"), std::string::npos) << report.to_text();
}

TEST(SoakReport, SixtyFourBytesARevertAreGrowth) {
  const SoakReport report =
      report_of([](u64 revert) { return 4'000'000 + revert * 64; }, [](u64) { return 31; });
  EXPECT_NEAR(report.bytes_per_revert(), 64, 0.1);
  const Result<void> growth = report.check_growth();
  ASSERT_FALSE(growth);
  EXPECT_NE(growth.error().message().find("64.0 bytes a revert"), std::string::npos);
}

TEST(SoakReport, OneDescriptorMoreIsGrowth) {
  const SoakReport report =
      report_of([](u64) { return 4'000'000; }, [](u64 revert) { return 31 + revert / 10'000; });
  ASSERT_FALSE(report.check_growth());
  EXPECT_NE(report.check_growth().error().message().find("31 descriptors became 32"),
            std::string::npos);
}

}  // namespace
}  // namespace bench
