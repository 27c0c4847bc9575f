// VMs as processes: what `ps` shows, what kill -9 leaves, two homes, logs, names.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "tests/native/support/vm_process.h"

namespace native {
namespace {

class Lifecycle : public NativeTest {
 protected:
  VmHome home_;
  VmProcess vm_{home_, "t"};

  void start() {
    vm_.start("workload");
    ASSERT_TRUE(vm_.wait_for("READY"));
  }
};

TEST_F(Lifecycle, PsShowsNameStateAndPidOfARunningVm) {
  start();
  EXPECT_EQ(home_.state_of("t"), "running");
  EXPECT_EQ(kill(home_.pid_of("t"), 0), 0);
}

TEST_F(Lifecycle, VmThatPoweredOffIsNotRunningAndItsNameIsFree) {
  start();
  vm_.send("off\n");
  ASSERT_TRUE(vm_.wait_until_gone());
  VmProcess again(home_, "t");
  EXPECT_EQ(home_.quicksave({"rm", "t"}).status, 0);
  again.start("workload");
  EXPECT_TRUE(again.wait_for("READY"));
}

TEST_F(Lifecycle, SecondVmOfARunningNameIsRefused) {
  start();
  CommandResult second =
      home_.quicksave({"run", "--name", "t", "--kernel", guest_path("workload"), "-d"});
  EXPECT_NE(second.status, 0);
  EXPECT_NE(second.err.find("error:"), std::string::npos) << second.err;
  EXPECT_EQ(vm_.ask("echo still here"), "ECHO still here\n");
}

TEST_F(Lifecycle, KillNineLeavesAVmThatPsCallsDeadAndWhoseSnapshotsRestore) {
  start();
  vm_.ask("nonce 12");
  vm_.snapshot("clean");
  pid_t pid = home_.pid_of("t");
  ASSERT_GT(pid, 0);
  ASSERT_EQ(kill(pid, SIGKILL), 0);
  ASSERT_TRUE(vm_.wait_until_gone());
  EXPECT_NE(home_.state_of("t"), "running");
  VmProcess other(home_, "t2");
  other.start_from("t@clean");
  EXPECT_EQ(other.ask("nonce").rfind("NONCE 12\n", 0), 0u);
  EXPECT_EQ(home_.quicksave({"rm", "t"}).status, 0);
}

TEST_F(Lifecycle, KillNineWhileSnapshottingLeavesOnlyWholeSnapshots) {
  start();
  vm_.ask("fill 0 8192 1");
  vm_.snapshot("whole");
  pid_t pid = home_.pid_of("t");
  // The client runs beside us and loses its peer in the middle.
  pid_t killer = fork();
  if (killer == 0) {
    usleep(15000);
    kill(pid, SIGKILL);
    _exit(0);
  }
  CommandResult result = home_.quicksave({"snapshot", "create", "t", "torn"});
  ASSERT_TRUE(vm_.wait_until_gone());
  EXPECT_EQ(home_.quicksave({"snapshot", "check", "t@whole"}).status, 0);
  nlohmann::json list = home_.quicksave_json({"snapshot", "list", "t"});
  bool listed = list.dump().find("\"torn\"") != std::string::npos;
  EXPECT_EQ(listed, home_.quicksave({"snapshot", "check", "t@torn"}).status == 0);
  if (result.status == 0) {
    EXPECT_TRUE(listed) << "promised and lost";
  }
}

TEST_F(Lifecycle, TwoHomesDoNotSeeEachOther) {
  start();
  VmHome other_home;
  VmProcess other(other_home, "t");
  other.start("workload");
  other.wait_for("READY");
  vm_.ask("nonce 1");
  other.ask("nonce 2");
  EXPECT_EQ(home_.quicksave({"kill", "t"}).status, 0);
  vm_.wait_until_gone();
  EXPECT_EQ(other.ask("nonce").rfind("NONCE 2\n", 0), 0u);
  EXPECT_EQ(other_home.state_of("t"), "running");
}

TEST_F(Lifecycle, LogsKeepWhatTheGuestWroteAcrossARevert) {
  start();
  vm_.snapshot("clean");
  vm_.ask("echo abandoned-word");
  vm_.revert("clean");
  vm_.ask("echo later-word");
  CommandResult logs = home_.quicksave({"logs", "t"});
  EXPECT_EQ(logs.status, 0);
  EXPECT_LT(logs.out.find("ECHO abandoned-word"), logs.out.find("ECHO later-word"));
}

TEST_F(Lifecycle, SnapshotListShowsNameParentAndTime) {
  start();
  vm_.snapshot("first");
  vm_.snapshot("second");
  nlohmann::json list = home_.quicksave_json({"snapshot", "list", "t"});
  ASSERT_TRUE(list.is_array());
  ASSERT_EQ(list.size(), 2u);
  for (const nlohmann::json& entry : list) {
    for (const char* key : {"name", "parent", "created"}) {
      EXPECT_TRUE(entry.contains(key)) << key << " in " << entry.dump();
    }
  }
}

TEST_F(Lifecycle, SnapshotReportsItsPauseAndSize) {
  start();
  nlohmann::json result = vm_.snapshot("clean");
  for (const char* key : {"pause_us", "total_us", "memory_bytes"}) {
    EXPECT_TRUE(result.contains(key)) << key << " in " << result.dump();
  }
  EXPECT_LT(result["memory_bytes"].get<unsigned long long>(), 64ull << 20) << "not sparse";
}

TEST_F(Lifecycle, DiskBytesAreWhatTheSnapshotsDiskFilesOccupyWhoeverTells) {
  make_disk(home_.file("d"), 16 << 20);
  vm_.start("workload", {"--disk", home_.file("d") + ",format=raw"});
  ASSERT_TRUE(vm_.wait_for("READY"));
  vm_.ask("disk-write 0 0 64 1");
  nlohmann::json made = vm_.snapshot("clean");
  nlohmann::json listed = home_.quicksave_json({"snapshot", "list", "t"});
  nlohmann::json checked = home_.quicksave_json({"snapshot", "check", "t@clean"});
  struct stat status = {};
  std::string object = home_.path() + "/snapshots/" + made["uuid"].get<std::string>();
  ASSERT_EQ(stat((object + "/disk-0.qcow2").c_str(), &status), 0);
  EXPECT_EQ(made["disk_bytes"], status.st_blocks * 512);
  EXPECT_EQ(listed[0]["disk_bytes"], made["disk_bytes"]);
  EXPECT_EQ(checked["disk_bytes"], made["disk_bytes"]);
}

// To resume it would be wrong: it may be paused because the host has no room.
TEST_F(Lifecycle, StopEndsAPausedVmAndSaysHow) {
  start();
  ASSERT_EQ(home_.quicksave({"pause", "t"}).status, 0);
  CommandResult stopped = home_.quicksave({"stop", "t"});
  EXPECT_EQ(stopped.status, 0);
  EXPECT_NE(stopped.err.find("t is paused, not running"), std::string::npos) << stopped.err;
  EXPECT_EQ(home_.state_of("t"), "stopped");
}

TEST_F(Lifecycle, ADescriptionSteersNoTerminal) {
  start();
  ASSERT_EQ(
      home_.quicksave({"snapshot", "create", "t", "s", "--desc", "a\nb\x1b[31m größe"}).status, 0);
  for (const char* form : {"--tree", "t"}) {
    std::string list = home_.quicksave({"snapshot", "list", form}).out;
    EXPECT_NE(list.find("a?b?[31m größe"), std::string::npos) << list;
  }
}

TEST_F(Lifecycle, NeitherDescriptorsNorMemoryGrowOverReverts) {
  start();
  vm_.snapshot("clean");
  std::string proc = "/proc/" + std::to_string(home_.pid_of("t"));
  auto descriptors = [&] {
    return std::distance(std::filesystem::directory_iterator(proc + "/fd"),
                         std::filesystem::directory_iterator());
  };
  auto revert_many = [&](int times) {
    for (int round = 0; round < times; ++round) {
      vm_.revert("clean", {});
    }
  };
  revert_many(10);
  auto before = descriptors();
  revert_many(50);
  EXPECT_LE(descriptors(), before);
}

}  // namespace
}  // namespace native
