// The soak, short: it passes on the sound program and finds what is planted in the faulty one.

#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/native/support/vm_process.h"

namespace native {
namespace {

class Soak : public NativeTest {
 protected:
  VmHome home_;

  CommandResult faulty(const std::string& fault) {
    ::setenv("QUICKSAVE_BINARY", QUICKSAVE_BINARY_PATH "-faulty", 1);
    CommandResult result = home_.quicksave({"soak", "--reverts", "100"}, std::chrono::seconds(100),
                                           {"QUICKSAVE_FAULT=" + fault});
    ::unsetenv("QUICKSAVE_BINARY");
    return result;
  }
};

TEST_F(Soak, ThreeHundredRevertsAreRightAndNothingGrows) {
  CommandResult result =
      home_.quicksave({"soak", "--reverts", "300", "--json"}, std::chrono::seconds(100));
  ASSERT_EQ(result.status, 0) << result.err;
  nlohmann::json report = nlohmann::json::parse(result.out);
  EXPECT_EQ(report["reverts"], 300);
  EXPECT_EQ(report["memory_bytes"], 64u << 20);
  EXPECT_EQ(report["samples"].size(), 100u);
}

TEST_F(Soak, APageThatIsNotCopiedBackEndsIt) {
  CommandResult result = faulty("page");
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(result.err.rfind("error: revert 1: ", 0), 0u) << result.err;
  EXPECT_NE(result.err.find("pages of memory differ"), std::string::npos) << result.err;
}

TEST_F(Soak, ADiskThatStaysBehindEndsIt) {
  CommandResult result = faulty("disk");
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("written after the snapshot"), std::string::npos) << result.err;
}

// No comparison by the host can find it: the guest does.
TEST_F(Soak, StaleShadowTablesEndIt) {
  if (home_.quicksave({"doctor"}).out.find("shadow paging") == std::string::npos) {
    GTEST_SKIP() << "this host's KVM keeps no stale shadow tables";
  }
  // The guest loads CR3 once a round, and KVM then looks at the tables again by itself. A snapshot
  // taken between the guest's look and that moment hides the fault in every revert to it, so
  // several are taken: about half of them show it.
  CommandResult result = faulty("zap");
  for (int snapshot = 1; snapshot < 16 && result.status == 0; ++snapshot) result = faulty("zap");
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("the guest read through a stale mapping"), std::string::npos)
      << result.err;
}

}  // namespace
}  // namespace native
