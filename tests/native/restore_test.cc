// Restore into a new process, and life after it: further generations, in-place reverts there, two
// VMs from one snapshot.

#include <gtest/gtest.h>

#include "tests/native/support/vm_process.h"

namespace native {
namespace {

class Restore : public NativeTest {
 protected:
  VmHome home_;
  VmProcess vm_{home_, "t"};

  void start(const std::string& guest, std::vector<std::string> options = {}) {
    vm_.start(guest, std::move(options));
    ASSERT_TRUE(vm_.wait_for("READY"));
  }
  std::string disk(const std::string& name, unsigned long long bytes = 16 << 20) {
    make_disk(home_.file(name), bytes);
    return home_.file(name) + ",format=raw";
  }
};

TEST_F(Restore, GuestGoesOnInANewProcessWithMemoryAndDisk) {
  start("workload", {"--disk", disk("d.raw")});
  vm_.ask("nonce 31\nfill 0 300 1\ndisk-write 0 10 200 5");
  std::string before = vm_.ask("hash 0 400");
  vm_.snapshot("clean");
  vm_.ask("nonce 32\nfill 0 300 2\ndisk-write 0 10 200 6");
  VmProcess other(home_, "t2");
  other.start_from("t@clean");
  EXPECT_EQ(other.ask("nonce").rfind("NONCE 31\n", 0), 0u);
  EXPECT_EQ(other.ask("hash 0 400"), before);
  EXPECT_EQ(other.ask("disk-check 0 10 200 5"), "MATCH\n");
  EXPECT_EQ(other.log().find("READY"), std::string::npos) << "the guest rebooted";
  // The first one has noticed nothing.
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 32\n", 0), 0u);
  EXPECT_EQ(vm_.ask("disk-check 0 10 200 6"), "MATCH\n");
}

TEST_F(Restore, VerifyReadsEveryByteAndAcceptsAGoodSnapshot) {
  start("workload");
  vm_.ask("fill 0 300 1");
  vm_.snapshot("clean");
  VmProcess other(home_, "t2");
  other.start_from("t@clean", {"--verify"});
  EXPECT_EQ(home_.quicksave({"snapshot", "check", "t@clean"}).status, 0);
}

TEST_F(Restore, RevertsInPlaceInTheNewProcess) {
  start("workload", {"--disk", disk("d.raw")});
  vm_.ask("nonce 41\nfill 0 300 1\ndisk-write 0 0 100 1");
  vm_.snapshot("clean");
  home_.quicksave({"kill", "t"});
  vm_.wait_until_gone();
  VmProcess other(home_, "t2");
  other.start_from("t@clean");
  std::string before = other.ask("hash 0 400");
  for (int round = 0; round < 5; ++round) {
    other.ask("nonce 42\ndirty 400\ndisk-write 0 0 100 2");
    other.revert("clean");
    EXPECT_EQ(other.ask("nonce").rfind("NONCE 41\n", 0), 0u);
    EXPECT_EQ(other.ask("hash 0 400"), before);
    EXPECT_EQ(other.ask("disk-check 0 0 100 1"), "MATCH\n");
  }
}

TEST_F(Restore, ThreeGenerationsKeepMemoryDiskAndTimers) {
  start("workload", {"--disk", disk("d.raw")});
  std::string from = "t";
  VmProcess* current = &vm_;
  std::vector<std::unique_ptr<VmProcess>> descendants;
  for (int generation = 1; generation <= 3; ++generation) {
    std::string number = std::to_string(generation);
    current->ask("nonce " + number + "\nfill " + number + "00 50 " + number + "\ndisk-write 0 " +
                 number + "00 50 " + number);
    std::string memory = current->ask("hash 0 600"), blocks = current->ask("disk-hash 0 0 600");
    current->snapshot("g" + number);
    home_.quicksave({"kill", from});
    current->wait_until_gone();
    std::string next = "t" + number;
    descendants.push_back(std::make_unique<VmProcess>(home_, next));
    descendants.back()->start_from(from + "@g" + number);
    current = descendants.back().get();
    EXPECT_EQ(current->ask("nonce").rfind("NONCE " + number + "\n", 0), 0u);
    EXPECT_EQ(current->ask("hash 0 600"), memory);
    EXPECT_EQ(current->ask("disk-hash 0 0 600"), blocks);
    from = next;
  }
}

TEST_F(Restore, TimersOfEveryModeTickInTheThirdGeneration) {
  start("timer");
  for (const char* mode : {"periodic", "one-shot", "deadline"}) {
    vm_.ask(mode);
    std::string from = std::string("t@") + mode;
    vm_.snapshot(mode);
    for (int generation = 1; generation <= 3; ++generation) {
      std::string name = std::string(mode) + std::to_string(generation);
      VmProcess next(home_, name);
      next.start_from(from);
      EXPECT_EQ(next.ask("check").rfind("TICKS", 0), 0u) << name;
      next.snapshot("s");
      from = name + "@s";
      home_.quicksave({"kill", name});
    }
  }
}

TEST_F(Restore, EveryProcessorGoesOn) {
  start("smp", {"--cpus", "8"});
  ASSERT_EQ(vm_.ask("start 8"), "STARTED 8\n");
  vm_.snapshot("clean");
  VmProcess other(home_, "t2");
  other.start_from("t@clean");
  EXPECT_EQ(other.ask("progress"), "PROGRESS 8\n");
  EXPECT_EQ(other.ask("ipi"), "ANSWERED 8\n");
  other.revert("clean");
  EXPECT_EQ(other.ask("progress"), "PROGRESS 8\n");
}

TEST_F(Restore, ProcessorsThatWaitedAtTheSnapshotCanBeStarted) {
  start("smp", {"--cpus", "4"});
  vm_.snapshot("clean");
  VmProcess other(home_, "t2");
  other.start_from("t@clean");
  EXPECT_EQ(other.ask("start 4"), "STARTED 4\n");
  EXPECT_EQ(other.ask("progress"), "PROGRESS 4\n");
}

TEST_F(Restore, ChurnedMappingsAreSeenInTheNewProcessAndAfterARevertThere) {
  start("page_table_churn");
  vm_.ask("churn 1");
  std::string before = vm_.ask("verify");
  vm_.snapshot("clean");
  VmProcess other(home_, "t2");
  other.start_from("t@clean");
  EXPECT_EQ(other.ask("verify"), before);
  for (int round = 0; round < 5; ++round) {
    other.ask("churn " + std::to_string(50 + round));
    other.revert("clean");
    EXPECT_EQ(other.ask("verify"), before);
  }
}

TEST_F(Restore, SerialGoesOnInMidTransmit) {
  start("serial_transmit");
  ASSERT_TRUE(vm_.wait_for("SENT 00000020"));
  vm_.snapshot("clean");
  VmProcess other(home_, "t2");
  other.start_from("t@clean");
  std::optional<size_t> first = other.wait_for("SENT ");
  ASSERT_TRUE(first);
  EXPECT_TRUE(other.wait_for("SENT ", *first));
}

TEST_F(Restore, SnapshotWhileTheGuestWritesItsDiskIsWhole) {
  start("workload", {"--disk", disk("d.raw", 64 << 20)});
  vm_.send("disk-write 0 0 120000 9\n");  // half a second and more
  usleep(50000);
  vm_.snapshot("clean");
  VmProcess other(home_, "t2");
  other.start_from("t@clean");
  // Answered when the writing that the snapshot cut in two is finished.
  EXPECT_EQ(other.ask("disk-check 0 0 1000 9"), "MATCH\n");
  EXPECT_EQ(other.ask("disk-check 0 119000 1000 9"), "MATCH\n");
  EXPECT_NE(other.log().find("STATUS 0"), std::string::npos) << "the snapshot came too late";
}

TEST_F(Restore, ManyFromOneSnapshotDoNotSeeEachOther) {
  start("workload", {"--disk", disk("d.raw")});
  vm_.ask("nonce 1");
  vm_.snapshot("clean");
  VmProcess left(home_, "left"), right(home_, "right");
  left.start_from("t@clean");
  right.start_from("t@clean");
  left.ask("nonce 2\nfill 0 100 2\ndisk-write 0 0 50 2");
  right.ask("nonce 3\nfill 0 100 3\ndisk-write 0 0 50 3");
  EXPECT_EQ(left.ask("disk-check 0 0 50 2"), "MATCH\n");
  EXPECT_EQ(right.ask("disk-check 0 0 50 3"), "MATCH\n");
  EXPECT_NE(left.ask("hash 0 100"), right.ask("hash 0 100"));
  EXPECT_EQ(left.ask("nonce").rfind("NONCE 2\n", 0), 0u);
}

}  // namespace
}  // namespace native
