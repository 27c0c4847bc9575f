// In-place revert over every guest. Each revert runs with --verify (all of memory, registers,
// device state and disk compared with the snapshot); what the host cannot see, the guest reports.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "tests/native/support/vm_process.h"

namespace native {
namespace {

class Revert : public NativeTest {
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

TEST_F(Revert, GuestGoesOnInTheSameProcessInsteadOfRebooting) {
  start("workload");
  EXPECT_EQ(vm_.ask("nonce 4711").rfind("NONCE 4711\n", 0), 0u);
  vm_.snapshot("clean");
  pid_t pid = home_.pid_of("t");
  EXPECT_EQ(vm_.ask("nonce 99").rfind("NONCE 99\n", 0), 0u);
  nlohmann::json result = vm_.revert("clean");
  // A reboot would say 0 and print READY again.
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 4711\n", 0), 0u);
  EXPECT_EQ(vm_.log().find("READY"), vm_.log().rfind("READY"));
  EXPECT_EQ(home_.pid_of("t"), pid);
  for (const char* key : {"total_us", "dirty_pages", "clusters", "phases_us"}) {
    EXPECT_TRUE(result.contains(key)) << key << " in " << result.dump();
  }
}

TEST_F(Revert, MemoryIsAsItWasWhateverWasDirtied) {
  start("workload");
  vm_.ask("fill 0 2048 1");
  std::string before = vm_.ask("hash 0 4096");
  vm_.snapshot("clean");
  for (const char* damage :
       {"dirty 1", "dirty 256", "dirty 1000 3", "fill 0 4096 7", "touch 4096"}) {
    vm_.ask(damage);
    vm_.revert("clean");
    EXPECT_EQ(vm_.ask("hash 0 4096"), before) << damage;
  }
}

TEST_F(Revert, MemoryAboveFourGibibytesIsAsItWas) {
  start("workload", {"-m", "5G"});
  vm_.ask("fill 0x100000 16 1");
  std::string low = vm_.ask("hash 0 64"), high = vm_.ask("hash 0x100000 64");
  vm_.snapshot("clean");
  vm_.ask("fill 0x100000 64 2\nfill 0 64 3");
  // Without --verify, which reads all 5 GiB.
  vm_.revert("clean", {});
  EXPECT_EQ(vm_.ask("hash 0 64"), low);
  EXPECT_EQ(vm_.ask("hash 0x100000 64"), high);
}

TEST_F(Revert, CountsTheDirtyPagesOfTheGuest) {
  start("workload");
  vm_.ask("touch 512");
  vm_.snapshot("clean");
  vm_.ask("dirty 300");
  unsigned pages = vm_.revert("clean", {})["dirty_pages"];
  EXPECT_GE(pages, 300u);
  EXPECT_LT(pages, 900u);  // the guest's own few, and those that a shadow zap made "touched"
}

TEST_F(Revert, DiskAndMemoryGoBackTogether) {
  start("workload", {"--disk", disk("d.raw")});
  EXPECT_EQ(vm_.ask("disk-write 0 0 500 1\ndisk-flush 0"), "STATUS 0\nSTATUS 0\n");
  vm_.snapshot("clean");
  for (int round = 0; round < 3 && !HasFailure(); ++round) {
    EXPECT_EQ(vm_.ask("disk-write 0 100 800 2\ndisk-zero 0 0 50\ndisk-discard 0 64 64"),
              "STATUS 0\nSTATUS 0\nSTATUS 0\n");
    EXPECT_GT(vm_.revert("clean")["clusters"].get<int>(), 0);
    EXPECT_EQ(vm_.ask("disk-check 0 0 500 1"), "MATCH\n");
  }
}

// The host's comparison cannot see a stale shadow page or TLB entry: the guest reads its memory
// through the mappings that it had changed.
TEST_F(Revert, GuestSeesItsOldMappingsThroughTheTablesItHadChurned) {
  start("page_table_churn");
  vm_.ask("churn 1");
  std::string before = vm_.ask("verify");
  ASSERT_EQ(before.rfind("FRESH ", 0), 0u);
  vm_.snapshot("clean");
  for (int round = 0; round < 20 && !HasFailure(); ++round) {
    EXPECT_EQ(vm_.ask("churn " + std::to_string(100 + round)).rfind("FRESH ", 0), 0u);
    vm_.revert("clean");
    EXPECT_EQ(vm_.ask("verify"), before) << "round " << round;
  }
}

TEST_F(Revert, ChurnGoesOnWithoutAStaleReadAfterRevertsAtAnyMoment) {
  start("page_table_churn");
  vm_.send("run 5\n");
  std::optional<size_t> position = vm_.wait_for("ROUND 16\n");
  ASSERT_TRUE(position);
  vm_.snapshot("clean");
  for (int round = 0; round < 20 && !HasFailure(); ++round) {
    usleep(10000 + 7919 * static_cast<unsigned>(round));
    size_t from = vm_.log().size();
    vm_.revert("clean");
    ASSERT_TRUE(vm_.wait_for("ROUND ", from)) << "round " << round;
  }
  EXPECT_EQ(vm_.log().find("STALE"), std::string::npos);
}

TEST_F(Revert, TimersOfEveryModeTickOn) {
  start("timer");
  for (const char* mode : {"periodic", "one-shot", "deadline"}) {
    vm_.ask(mode);
    vm_.snapshot(mode);
    for (int round = 0; round < 5 && !HasFailure(); ++round) {
      usleep(20000);
      vm_.revert(mode);
      EXPECT_EQ(vm_.ask("check").rfind("TICKS", 0), 0u) << mode << ", round " << round;
    }
  }
}

TEST_F(Revert, NoTimerIsLostWhenTheGuestSleepsOnThem) {
  start("timer");
  vm_.send("run\n");
  ASSERT_TRUE(vm_.wait_for("TICKS lapic"));
  vm_.snapshot("clean");
  for (int round = 0; round < 10 && !HasFailure(); ++round) {
    usleep(30000);
    size_t from = vm_.log().size();
    vm_.revert("clean");
    ASSERT_TRUE(vm_.wait_for("TICKS lapic", from));
  }
  EXPECT_EQ(vm_.log().find("LOST"), std::string::npos);
}

TEST_F(Revert, EveryProcessorGoesOn) {
  start("smp", {"--cpus", "8"});
  ASSERT_EQ(vm_.ask("start 8"), "STARTED 8\n");
  vm_.snapshot("clean");
  for (int round = 0; round < 10 && !HasFailure(); ++round) {
    usleep(20000);
    vm_.revert("clean");
    EXPECT_EQ(vm_.ask("progress"), "PROGRESS 8\n") << "round " << round;
    EXPECT_EQ(vm_.ask("ipi"), "ANSWERED 8\n") << "round " << round;
    EXPECT_EQ(vm_.ask("verify"), "PAGES 8\n") << "round " << round;
  }
}

TEST_F(Revert, SpinningProcessorsGoOn) {
  start("smp", {"--cpus", "3"});
  ASSERT_EQ(vm_.ask("start 3"), "STARTED 3\n");
  vm_.ask("spin 1");
  vm_.snapshot("clean");
  for (int round = 0; round < 5 && !HasFailure(); ++round) {
    vm_.revert("clean");
    EXPECT_EQ(vm_.ask("progress"), "PROGRESS 3\n");
  }
}

// Processors that had not been started at the snapshot start after the revert: they wait for SIPI,
// where KVM_RUN does not load pending registers.
TEST_F(Revert, ProcessorsThatWaitedAtTheSnapshotCanBeStartedAfterEveryRevert) {
  start("smp", {"--cpus", "4"});
  vm_.snapshot("clean");
  for (int round = 0; round < 4 && !HasFailure(); ++round) {
    EXPECT_EQ(vm_.ask("start 4"), "STARTED 4\n") << "round " << round;
    EXPECT_EQ(vm_.ask("progress"), "PROGRESS 4\n") << "round " << round;
    vm_.revert("clean");
  }
}

TEST_F(Revert, SerialGoesOnInMidTransmit) {
  start("serial_transmit");
  ASSERT_TRUE(vm_.wait_for("SENT 00000020"));
  vm_.snapshot("clean");
  for (int round = 0; round < 10 && !HasFailure(); ++round) {
    usleep(5000 + 3331 * static_cast<unsigned>(round));
    size_t from = vm_.log().size();
    vm_.revert("clean");
    // At least two whole lines come after it.
    std::optional<size_t> first = vm_.wait_for("SENT ", from);
    ASSERT_TRUE(first) << "round " << round;
    ASSERT_TRUE(vm_.wait_for("SENT ", *first)) << "round " << round;
  }
  vm_.send("x");
  EXPECT_EQ(vm_.wait_for_exit(), 0);
}

TEST_F(Revert, InMidOutputTheOutputIsFinished) {
  start("workload");
  vm_.send("print 3000\n");
  ASSERT_TRUE(vm_.wait_for("LINE 50\n"));
  vm_.snapshot("clean");
  ASSERT_TRUE(vm_.wait_for("PRINTED"));
  size_t from = vm_.log().size();
  vm_.revert("clean");
  EXPECT_TRUE(vm_.wait_for("LINE 2999\nPRINTED", from));
}

TEST_F(Revert, RevivesAGuestThatHadHungItself) {
  start("workload");
  vm_.ask("nonce 5");
  vm_.snapshot("clean");
  vm_.send("hang\n");
  ASSERT_TRUE(vm_.wait_for("HANGING"));
  vm_.revert("clean");
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 5\n", 0), 0u);
}

TEST_F(Revert, DevicesWorkAfterAHostileGuestWasReverted) {
  start("hostile_ring", {"--disk", disk("d.raw")});
  vm_.snapshot("clean");
  for (int seed = 1; seed <= 5; ++seed) {
    vm_.ask("attack " + std::to_string(seed) + " 5");
    vm_.revert("clean");
  }
  EXPECT_EQ(vm_.ask("attack 100 5"), "SURVIVED 100\n");
}

TEST_F(Revert, ToAnOlderSnapshotAndForwardAgain) {
  start("workload", {"--disk", disk("d.raw")});
  vm_.ask("nonce 1\ndisk-write 0 0 64 1");
  vm_.snapshot("first");
  vm_.ask("nonce 2\ndisk-write 0 0 64 2\ndirty 500");
  vm_.snapshot("second");
  vm_.ask("nonce 3\ndisk-write 0 0 64 3\ndirty 900");
  for (int round = 0; round < 3 && !HasFailure(); ++round) {
    vm_.revert("first");
    EXPECT_EQ(vm_.ask("disk-check 0 0 64 1"), "MATCH\n");
    EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 1\n", 0), 0u);
    vm_.ask("dirty 50");
    vm_.revert("second");
    EXPECT_EQ(vm_.ask("disk-check 0 0 64 2"), "MATCH\n");
    EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 2\n", 0), 0u);
  }
}

TEST_F(Revert, TwoHundredTimesWithEveryByteCompared) {
  start("workload", {"-m", "16M", "--disk", disk("d.raw")});
  vm_.ask("fill 0 512 1\nnonce 8");
  vm_.snapshot("clean");
  vm_.send("run 200\n");
  for (int round = 0; round < 200 && !HasFailure(); ++round) {
    vm_.revert("clean");
    if (HasFailure()) {
      return;
    }
  }
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 8\n", 0), 0u);
}

TEST_F(Revert, WhileTheGuestWritesItsDiskNothingOfTheAbandonedTimelineArrives) {
  start("workload", {"--disk", disk("d.raw")});
  vm_.ask("disk-write 0 0 4000 1");
  vm_.snapshot("clean");
  for (int round = 0; round < 8 && !HasFailure(); ++round) {
    vm_.send("disk-write 0 0 4000 " + std::to_string(round + 2) + "\n");
    usleep(3000 + 2503 * static_cast<unsigned>(round));
    vm_.revert("clean");
    EXPECT_EQ(vm_.ask("disk-check 0 0 4000 1"), "MATCH\n") << "round " << round;
  }
}

TEST_F(Revert, TwoSnapshotsInARowAreBothWhole) {
  start("workload");
  vm_.ask("nonce 9\nfill 0 200 1");
  std::string before = vm_.ask("hash 0 300");
  EXPECT_EQ(home_.quicksave({"pause", "t"}).status, 0);
  vm_.snapshot("first");
  vm_.snapshot("second");
  EXPECT_EQ(home_.quicksave({"resume", "t"}).status, 0);
  for (const char* snapshot : {"first", "second", "first"}) {
    vm_.ask("nonce 10\ndirty 300");
    vm_.revert(snapshot);
    if (home_.state_of("t") == "paused") {
      EXPECT_EQ(home_.quicksave({"resume", "t"}).status, 0);
    }
    EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 9\n", 0), 0u) << snapshot;
    EXPECT_EQ(vm_.ask("hash 0 300"), before) << snapshot;
  }
}

TEST_F(Revert, PausedVmStaysPausedOrRunsAsItSaysAndIsIntact) {
  start("workload");
  vm_.ask("nonce 6");
  vm_.snapshot("clean");
  vm_.ask("nonce 7");
  EXPECT_EQ(home_.quicksave({"pause", "t"}).status, 0);
  vm_.revert("clean");
  if (home_.state_of("t") == "paused") {
    EXPECT_EQ(home_.quicksave({"resume", "t"}).status, 0);
  }
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 6\n", 0), 0u);
}

TEST_F(Revert, SnapshotsOfARunningVmAreDeletedAndLeaveNothingOpen) {
  start("workload", {"--disk", disk("d.raw")});
  vm_.ask("fill 0 256 1\ndisk-write 0 0 64 1");
  vm_.snapshot("base");
  const std::string process = "/proc/" + std::to_string(home_.pid_of("t"));
  const auto descriptors = [&] {
    return std::distance(std::filesystem::directory_iterator(process + "/fd"),
                         std::filesystem::directory_iterator());
  };
  const auto mappings = [&] {
    const std::string maps = read_file(process + "/maps");
    return std::ranges::count(maps, '\n');
  };
  const auto round = [&](const std::string& number) {
    vm_.ask("dirty 16\ndisk-write 0 0 64 " + number);
    vm_.snapshot("newer");
    vm_.revert("base", {});
    const CommandResult deleted = home_.quicksave({"snapshot", "delete", "t@newer"});
    EXPECT_EQ(deleted.status, 0) << deleted.err;
  };
  round("2");
  const auto fds = descriptors();
  const auto maps = mappings();
  for (int number = 3; number < 23 && !HasFailure(); ++number) round(std::to_string(number));
  // It closes a client's when it hears that the client has gone.
  for (int look = 0; look < 500 && descriptors() > fds; ++look) ::usleep(10000);
  EXPECT_LE(descriptors(), fds);
  EXPECT_LE(mappings(), maps + 4) << "memory of deleted snapshots stays";
  EXPECT_EQ(home_.quicksave_json({"snapshot", "list", "t"}).size(), 1u);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(home_.path() + "/snapshots"),
                          std::filesystem::directory_iterator()),
            2)
      << "base and the store's lock";
  vm_.revert("base");
  EXPECT_EQ(vm_.ask("disk-check 0 0 64 1"), "MATCH\n");
}

TEST_F(Revert, SnapshotThatSomethingStandsOnIsNotDeletedAndCanBeRevertedTo) {
  start("workload", {"--disk", disk("d.raw")});
  vm_.ask("nonce 1");
  vm_.snapshot("a");
  vm_.ask("nonce 2");
  vm_.snapshot("b");
  const auto expect_refused = [&](const std::string& name, const std::string& reason) {
    const CommandResult result = home_.quicksave({"snapshot", "delete", "t@" + name});
    EXPECT_EQ(result.status, 1);
    EXPECT_NE(result.err.find(reason), std::string::npos) << result.err;
  };
  expect_refused("b", "the machine stands on snapshot \"b\"");
  expect_refused("a", "snapshot \"b\" rests on snapshot \"a\"");
  expect_refused("c", "has no snapshot \"c\"");
  vm_.revert("a");
  VmProcess other(home_, "o");
  other.start_from("t@b");
  expect_refused("b", "in use by process " + std::to_string(home_.pid_of("o")));
  vm_.revert("b");
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 2\n", 0), 0u);
}

TEST_F(Revert, RebootWithoutAKernelKeepsTheMemory) {
  std::filesystem::copy(guest_path("workload"), home_.file("kernel"));
  const CommandResult run =
      home_.quicksave({"run", "--name", "t", "--kernel", home_.file("kernel"), "-m", "64M", "-d"});
  ASSERT_EQ(run.status, 0) << run.err;
  ASSERT_TRUE(vm_.wait_for("READY"));
  vm_.ask("fill 0 8192 1");
  const std::string status = "/proc/" + std::to_string(home_.pid_of("t")) + "/status";
  const auto resident_kib = [&] {
    const std::string text = read_file(status);
    return std::stoul(text.substr(text.find("VmRSS:") + 6));
  };
  EXPECT_GT(resident_kib(), 32768u);
  std::filesystem::remove(home_.file("kernel"));
  vm_.send("reset\n");
  for (int look = 0; look < 500 && home_.state_of("t") != "halted"; ++look) ::usleep(10000);
  EXPECT_EQ(home_.state_of("t"), "halted");
  EXPECT_GT(resident_kib(), 32768u);
}

// The machine is right, what it is compared with is not.
TEST_F(Revert, VerifyTellsADamagedSnapshotFromADamagedMachine) {
  start("workload");
  vm_.ask("fill 0 2048 1");
  vm_.snapshot("clean");
  std::string uuid = read_file(home_.path() + "/vms/t/refs/clean");
  uuid.pop_back();
  const std::string file = home_.path() + "/snapshots/" + uuid + "/memory";
  const std::string memory = read_file(file);
  // In the middle of what the guest filled.
  const std::size_t first = memory.find_first_not_of('\0', 8 << 20);
  const std::size_t damaged = (first & ~std::size_t{4095}) + (1 << 20) + 17;
  std::filesystem::permissions(file, std::filesystem::perms::owner_write,
                               std::filesystem::perm_options::add);
  std::fstream(file, std::ios::in | std::ios::out | std::ios::binary)
      .seekp(static_cast<std::streamoff>(damaged))
      .put(static_cast<char>(~memory[damaged]));
  const CommandResult result = home_.quicksave({"revert", "t", "clean", "--verify"});
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("the snapshot is damaged"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace native
