// Guests that cannot go on: detached they are halted with the reason and can be reverted; in the
// foreground the run ends with status 1. Other VMs do not notice.

#include <gtest/gtest.h>

#include "tests/native/support/vm_process.h"

namespace native {
namespace {

class Crash : public NativeTest {
 protected:
  VmHome home_;
  VmProcess vm_{home_, "t"};

  nlohmann::json description() {
    return nlohmann::json::parse(home_.quicksave({"inspect", "t"}).out);
  }

  // KVM on hardware gives the guest an exception instead, outside its kernel.
  bool cannot_emulate_a_fetch() {
    return home_.quicksave({"doctor"}).out.find("PVM") != std::string::npos;
  }

  // Detached, with a snapshot taken before: `command` halts the guest for `reason`.
  void expect_halted(const std::string& command, const std::string& reason) {
    vm_.start("exits");
    vm_.wait_for("READY");
    vm_.ask("nonce 3");
    vm_.snapshot("clean");
    VmProcess bystander(home_, "b");
    bystander.start("workload");
    bystander.wait_for("READY");

    vm_.send(command + "\n");
    ASSERT_TRUE(vm_.wait_until_gone());
    EXPECT_EQ(home_.state_of("t"), "halted");
    const std::string because = description()["paused_because"];
    EXPECT_EQ(because.rfind("the guest crashed: vCPU 0: ", 0), 0u) << because;
    EXPECT_NE(because.find(reason), std::string::npos) << because;
    const std::string log = read_file(home_.path() + "/vms/t/vmm.log");
    EXPECT_NE(log.find("t: " + because), std::string::npos) << log;
    EXPECT_NE(log.find("hint: quicksave logs t "), std::string::npos) << log;

    // What a halted VM cannot do is refused with its state, its reason and the way out.
    for (const char* verb : {"pause", "resume"}) {
      CommandResult refused = home_.quicksave({verb, "t"});
      EXPECT_EQ(refused.status, 1);
      EXPECT_EQ(refused.err.rfind("error: t is halted, not ", 0), 0u) << refused.err;
      EXPECT_NE(refused.err.find("quicksave revert t, or quicksave kill t"), std::string::npos)
          << refused.err;
    }
    EXPECT_EQ(bystander.ask("echo unmoved"), "ECHO unmoved\n");
    vm_.revert("clean");
    EXPECT_EQ(home_.state_of("t"), "running");
    EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 3\n", 0), 0u);
  }

  // In the foreground, by a guest that has its command from the console's socket.
  void expect_status_one(const std::string& command, const std::string& reason) {
    const pid_t client =
        home_.begin({"run", "--name", "t", "-m", "64M", "--kernel", guest_path("exits")});
    vm_.wait_for("READY");
    vm_.send(command + "\n");
    CommandResult result = home_.finish(client);
    EXPECT_EQ(result.status, 1);
    EXPECT_EQ(result.err.rfind("error: t: the guest crashed: vCPU 0: ", 0), 0u) << result.err;
    EXPECT_NE(result.err.find(reason), std::string::npos) << result.err;
    EXPECT_EQ(home_.state_of("t"), "stopped");
    EXPECT_EQ(home_.quicksave({"rm", "t"}).status, 0);
  }
};

TEST_F(Crash, TripleFaultHaltsADetachedVmAndARevertRevivesIt) {
  expect_halted("triple-fault", "triple fault");
}

TEST_F(Crash, TripleFaultInTheForegroundIsStatusOne) {
  expect_status_one("triple-fault", "triple fault");
}

// Code where no memory is: the instruction cannot be read, so KVM cannot emulate it.
TEST_F(Crash, WhatKvmCannotEmulateHaltsADetachedVmAndARevertRevivesIt) {
  if (!cannot_emulate_a_fetch()) {
    GTEST_SKIP() << "this KVM answers a fetch from a device page with: an exception";
  }
  expect_halted("fetch", "KVM internal error");
  EXPECT_NE(read_file(home_.path() + "/vms/t/vmm.log").find("quicksave doctor"), std::string::npos);
}

TEST_F(Crash, WhatKvmCannotEmulateInTheForegroundIsStatusOneWithARemedy) {
  if (!cannot_emulate_a_fetch()) {
    GTEST_SKIP() << "this KVM answers a fetch from a device page with: an exception";
  }
  expect_status_one("fetch", "at rip 0xe0000000; quicksave doctor tells");
}

}  // namespace
}  // namespace native
