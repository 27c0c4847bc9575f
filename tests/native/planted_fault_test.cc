// The proof that the native tests can fail: the program with a planted fault
// (vmm/base/planted_fault.h) is caught by the same questions that the sound one answers.

#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/native/support/vm_process.h"

namespace {

using native::CommandResult;
using native::NativeTest;
using native::VmHome;
using native::VmProcess;

class PlantedFault : public NativeTest {
 protected:
  PlantedFault() { ::setenv("QUICKSAVE_BINARY", QUICKSAVE_BINARY_PATH "-faulty", 1); }
  ~PlantedFault() override { ::unsetenv("QUICKSAVE_BINARY"); }

  void start(const std::string& guest, const std::string& fault,
             const std::vector<std::string>& options = {}) {
    vm_.start(guest, options, {"QUICKSAVE_FAULT=" + fault});
    ASSERT_TRUE(vm_.wait_for("READY"));
  }
  CommandResult verified_revert() { return home_.quicksave({"revert", "t", "clean", "--verify"}); }

  VmHome home_;
  VmProcess vm_{home_, "t"};
};

// A build that skips the zap: the guest's own reading through the mappings it had churned must find
// it, because no comparison by the host can.
TEST_F(PlantedFault, WithoutTheZapTheGuestReadsThroughStaleMappings) {
  if (home_.quicksave({"doctor"}).out.find("shadow paging") == std::string::npos) {
    GTEST_SKIP() << "this host's KVM keeps no stale shadow tables";
  }
  start("page_table_churn", "zap");
  vm_.ask("churn 1");
  vm_.snapshot("clean");
  bool stale = false;
  for (int round = 0; round < 10 && !stale; ++round) {
    vm_.ask("churn " + std::to_string(100 + round));
    vm_.revert("clean", {});
    stale = vm_.ask("verify").rfind("STALE ", 0) == 0;
  }
  EXPECT_TRUE(stale);
}

TEST_F(PlantedFault, APageThatIsNotCopiedBackIsFound) {
  start("workload", "page");
  vm_.ask("fill 0 64 1");
  vm_.snapshot("clean");
  vm_.ask("fill 0 64 2");
  const CommandResult result = verified_revert();
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("pages of memory differ"), std::string::npos) << result.err;
}

TEST_F(PlantedFault, ADiskThatStaysBehindIsFound) {
  native::make_disk(home_.file("d.raw"), 1 << 20);
  start("workload", "disk", {"--disk", home_.file("d.raw") + ",format=raw"});
  vm_.ask("disk-write 0 0 8 1");
  vm_.snapshot("clean");
  vm_.ask("disk-write 0 0 8 2");
  const CommandResult result = verified_revert();
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("written after the snapshot"), std::string::npos) << result.err;
}

TEST_F(PlantedFault, ADeviceThatStaysBehindIsFound) {
  native::make_disk(home_.file("d.raw"), 1 << 20);
  start("workload", "device", {"--disk", home_.file("d.raw") + ",format=raw"});
  vm_.ask("disk-write 0 0 8 1");
  vm_.snapshot("clean");
  vm_.ask("disk-write 0 0 8 2");
  const CommandResult result = verified_revert();
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("the state of virtio-mmio.0 differs"), std::string::npos) << result.err;
}

// A revert that fails after memory was copied back halts the machine; the next revert starts from the
// memory that is there.
TEST_F(PlantedFault, RevertAfterOneThatFailedHalfwayIsRight) {
  start("workload", "states");
  vm_.ask("nonce 1\nfill 0 64 1");
  vm_.snapshot("clean");
  vm_.ask("nonce 2\nfill 0 64 2");
  const std::string second = vm_.ask("hash 0 64");
  vm_.snapshot("second");
  const CommandResult failed = verified_revert();
  EXPECT_EQ(failed.status, 1);
  EXPECT_EQ(home_.state_of("t"), "halted");
  vm_.revert("second");
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 2\n", 0), 0u);
  EXPECT_EQ(vm_.ask("hash 0 64"), second);
  vm_.revert("clean");
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 1\n", 0), 0u);
}

}  // namespace
