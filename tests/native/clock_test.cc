// The guest's clock over reverts and restores.

#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/native/support/vm_process.h"

namespace native {
namespace {

class Clock : public NativeTest {
 protected:
  VmHome home_;
  VmProcess vm_{home_, "t"};

  static unsigned long long milliseconds(VmProcess& vm) {
    std::string answer = vm.ask("clock");
    size_t number = answer.find("NANOSECONDS ");
    if (number == std::string::npos) {
      ADD_FAILURE() << answer;
      return 0;
    }
    return std::stoull(answer.substr(number + sizeof("NANOSECONDS"))) / 1000000;
  }
};

TEST_F(Clock, FollowsRealTimeOverARevertAndARestore) {
  vm_.start("workload");
  ASSERT_TRUE(vm_.wait_for("READY"));
  vm_.snapshot("clean");
  unsigned long long at_snapshot = milliseconds(vm_);
  sleep(1);
  vm_.revert("clean");
  unsigned long long after_revert = milliseconds(vm_);
  EXPECT_GE(after_revert, at_snapshot + 1000);
  EXPECT_LT(after_revert, at_snapshot + 30000);
  VmProcess other(home_, "t2");
  other.start_from("t@clean");
  EXPECT_GE(milliseconds(other), after_revert);
}

TEST_F(Clock, NeverGoesBackBetweenReverts) {
  vm_.start("workload");
  ASSERT_TRUE(vm_.wait_for("READY"));
  milliseconds(vm_);
  vm_.snapshot("clean");
  unsigned long long last = 0;
  for (int round = 0; round < 10 && !HasFailure(); ++round) {
    vm_.revert("clean");
    unsigned long long now = milliseconds(vm_);
    EXPECT_GE(now, last);
    last = now;
  }
}

}  // namespace
}  // namespace native
