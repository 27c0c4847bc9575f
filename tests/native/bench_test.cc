// That `quicksave bench` measures and prints what it promises; never how fast anything is.

#include "tests/native/support/vm_process.h"

#include <set>

namespace native {
namespace {

class BenchTest : public NativeTest {
 protected:
  VmHome home_;
};

// The cell of the first row below the heading `column`.
double first_number(const nlohmann::json& table, const std::string& column) {
  for (size_t i = 0; i < table["columns"].size(); ++i) {
    if (table["columns"][i] == column) {
      return std::stod(table["rows"][0][i].get<std::string>());
    }
  }
  ADD_FAILURE() << "no column \"" << column << "\" in " << table.dump();
  return 0;
}

TEST_F(BenchTest, QuickRunPrintsTablesOfPositiveNumbers) {
  CommandResult result =
      home_.quicksave({"bench", "revert", "--quick", "--no-qemu", "--json", "--only", "mapped",
                       "--only", "cold-start", "--only", "resident"});
  ASSERT_EQ(result.status, 0) << result.err;
  nlohmann::json answer = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_TRUE(answer.is_object()) << result.out;
  EXPECT_NE(answer["host"]["KVM"], "");
  EXPECT_EQ(answer["host"]["peer"], "none");
  ASSERT_EQ(answer["tables"].size(), 3U);
  EXPECT_EQ(answer["tables"][0]["rows"].size(), 4U);
  EXPECT_GT(first_number(answer["tables"][0], "p50"), 0);
  EXPECT_GT(first_number(answer["tables"][0], "own p50"), 0);
  EXPECT_GT(first_number(answer["tables"][1], "p50"), 0);
  EXPECT_EQ(answer["tables"][1]["bars"][0]["verdict"], "unmeasured");
  EXPECT_GT(first_number(answer["tables"][2], "beside the guest"), 0);
}

TEST_F(BenchTest, TextNamesEveryBar) {
  CommandResult result =
      home_.quicksave({"bench", "revert", "--quick", "--no-qemu", "--only", "resident"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("== resident"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("at most 6 MiB"), std::string::npos) << result.out;
}

// Every cell but those of the columns `without` holds a number above zero.
void expect_positive_numbers(const nlohmann::json& table, const std::set<std::string>& without) {
  for (const nlohmann::json& row : table["rows"]) {
    for (size_t i = 0; i < row.size(); ++i) {
      if (without.contains(table["columns"][i])) continue;
      EXPECT_GT(std::strtod(row[i].get<std::string>().c_str(), nullptr), 0)
          << table["columns"][i] << " in " << row.dump();
    }
  }
}

TEST_F(BenchTest, ImageTablesWithAGuestArePositiveNumbers) {
  CommandResult result = home_.quicksave({"bench", "image", "--quick", "--json", "--only",
                                          "overlay", "--only", "guest", "--only", "handover"},
                                         std::chrono::seconds(100));
  ASSERT_EQ(result.status, 0) << result.err;
  nlohmann::json answer = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_TRUE(answer.is_object()) << result.out;
  ASSERT_EQ(answer["tables"].size(), 3U);
  const nlohmann::json& overlay = answer["tables"][0];
  EXPECT_EQ(overlay["rows"].size(), 12U);
  EXPECT_EQ(overlay["bars"].size(), 4U);
  EXPECT_GT(first_number(overlay, "create p50"), 0);
  const nlohmann::json& guest = answer["tables"][1];
  EXPECT_EQ(guest["rows"].size(), 3U);
  // Processor time comes in ticks of 10 ms, and a thread that always has work never sleeps.
  expect_positive_numbers(guest, {"what", "queue user", "queue system", "vCPU user", "vCPU system",
                                  "kicks", "queue sleeps", "bench user", "bench system"});
  const nlohmann::json& handover = answer["tables"][2];
  EXPECT_EQ(handover["rows"].size(), 2U);
  EXPECT_EQ(handover["bars"].size(), 2U);
  expect_positive_numbers(handover, {});
  EXPECT_GE(first_number(handover, "layer MiB"), 256);
}

TEST_F(BenchTest, UnknownTableIsRefused) {
  EXPECT_EQ(home_.quicksave({"bench", "revert", "--only", "nothing"}).status, 2);
  EXPECT_EQ(home_.quicksave({"bench", "image", "--only", "nothing"}).status, 2);
}

}  // namespace
}  // namespace native
