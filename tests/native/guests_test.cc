// Every guest by itself: the machine keeps the property it proves.

#include <gtest/gtest.h>

#include "tests/native/support/vm_process.h"

namespace native {
namespace {

class Guests : public NativeTest {
 protected:
  VmHome home_;
  VmProcess vm_{home_, "t"};

  std::string disk(const std::string& name, unsigned long long bytes = 16 << 20) {
    make_disk(home_.file(name), bytes);
    return home_.file(name) + ",format=raw";
  }
};

TEST_F(Guests, ForegroundRunPutsTheConsoleOnStdoutAndReturnsZeroAtPowerOff) {
  CommandResult result =
      home_.quicksave({"run", "--name", "t", "--kernel", guest_path("hello"), "-m", "64M"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("HELLO\nGUEST-EXIT 0\n"), std::string::npos) << result.out;
}

TEST_F(Guests, PvhKernelBootsWithNothingButKernel) {
  CommandResult result = home_.quicksave({"run", "--kernel", guest_path("hello")});
  EXPECT_EQ(result.status, 0) << result.err;
}

TEST_F(Guests, TripleFaultEndsTheVmWithStatusOne) {
  vm_.start("exits");
  vm_.wait_for("READY");
  vm_.send("triple-fault\n");
  EXPECT_TRUE(vm_.wait_until_gone());
  CommandResult foreground = home_.quicksave({"ps", "--json"});
  EXPECT_EQ(foreground.status, 0);
}

TEST_F(Guests, UnknownPortsAndAddressesReadAllOnes) {
  vm_.start("exits");
  vm_.wait_for("READY");
  EXPECT_EQ(vm_.ask("ports"), "PORTS ok\n");
  EXPECT_EQ(vm_.ask("mmio"), "MMIO ok\n");
}

TEST_F(Guests, HaltWithInterruptsOffLeavesTheVmControllable) {
  vm_.start("exits");
  vm_.wait_for("READY");
  vm_.send("hang\n");
  vm_.wait_for("HANGING");
  EXPECT_EQ(home_.state_of("t"), "running");
  EXPECT_EQ(home_.quicksave({"pause", "t"}).status, 0);
  EXPECT_EQ(home_.state_of("t"), "paused");
  EXPECT_EQ(home_.quicksave({"resume", "t"}).status, 0);
  EXPECT_EQ(home_.quicksave({"kill", "t"}).status, 0);
  EXPECT_TRUE(vm_.wait_until_gone());
}

TEST_F(Guests, MemoryHoldsPatternsAtItsEnds) {
  vm_.start("memory_patterns", {"-m", "128M"});
  EXPECT_EQ(vm_.wait_for_exit(), 0);
}

TEST_F(Guests, MemoryAboveFourGibibytesHoldsPatterns) {
  vm_.start("memory_patterns", {"-m", "5G"});
  EXPECT_EQ(vm_.wait_for_exit(std::chrono::seconds(60)), 0);
  EXPECT_NE(vm_.log().find("high 2147483648"), std::string::npos) << vm_.log();
}

TEST_F(Guests, DiskReadsWritesAndFlushes) {
  vm_.start("blk_rw", {"--disk", disk("d.raw")});
  EXPECT_EQ(vm_.wait_for_exit(), 0);
}

TEST_F(Guests, OverlayDiskLeavesItsBaseUntouched) {
  std::string argument = disk("d.raw");
  std::string before = read_file(home_.file("d.raw"));
  vm_.start("blk_rw", {"--disk", argument});
  EXPECT_EQ(vm_.wait_for_exit(), 0);
  EXPECT_EQ(read_file(home_.file("d.raw")), before);
}

TEST_F(Guests, DiskAnswersEveryBadRequestAsTheSpecificationSays) {
  vm_.start("blk_edges", {"--disk", disk("d.raw"), "--disk", disk("r.raw") + ",mode=ro"});
  EXPECT_EQ(vm_.wait_for_exit(), 0);
  EXPECT_EQ(vm_.log().find("NO-READ-ONLY-DISK"), std::string::npos);
}

TEST_F(Guests, PageTableChurnReadsItsOwnMappings) {
  vm_.start("page_table_churn");
  vm_.wait_for("READY");
  for (int seed = 1; seed < 20; ++seed) {
    EXPECT_EQ(vm_.ask("churn " + std::to_string(seed)).rfind("FRESH ", 0), 0u);
  }
}

TEST_F(Guests, TimersTickInEveryMode) {
  vm_.start("timer");
  vm_.wait_for("READY");
  EXPECT_EQ(vm_.ask("check").rfind("TICKS", 0), 0u);
  EXPECT_EQ(vm_.ask("one-shot\ncheck").find("LOST"), std::string::npos);
  EXPECT_EQ(vm_.ask("deadline\ncheck").find("LOST"), std::string::npos);
}

TEST_F(Guests, EightProcessorsMakeProgressAndAnswerInterrupts) {
  vm_.start("smp", {"--cpus", "8"});
  vm_.wait_for("READY");
  EXPECT_EQ(vm_.ask("start 8"), "STARTED 8\n");
  EXPECT_EQ(vm_.ask("progress"), "PROGRESS 8\n");
  EXPECT_EQ(vm_.ask("ipi"), "ANSWERED 8\n");
  EXPECT_EQ(vm_.ask("verify"), "PAGES 8\n");
}

TEST_F(Guests, HostileRingsNeverEndTheVmNorBreakADeviceForGood) {
  vm_.start("hostile_ring", {"--disk", disk("d.raw"), "--disk", disk("e.raw") + ",mode=ro"});
  vm_.wait_for("READY");
  for (int seed = 1; seed <= 8; ++seed) {
    EXPECT_EQ(vm_.ask("attack " + std::to_string(seed) + " 10"),
              "SURVIVED " + std::to_string(seed) + "\n");
  }
  EXPECT_EQ(vm_.ask("loop"), "SURVIVED 0\n");
  // A hostile guest must not fill the host's disk either.
  EXPECT_LT(read_file(home_.path() + "/vms/t/vmm.log").size(), 256u << 10);
}

TEST_F(Guests, SerialFloodArrivesInOrder) {
  vm_.start("serial_flood");
  vm_.wait_for("READY\n");
  std::string answer = vm_.ask("flood 45000");
  for (int line = 0; line < 5000; ++line) {
    char expected[16];
    snprintf(expected, sizeof(expected), "%08d\n", line);
    ASSERT_EQ(answer.substr(static_cast<size_t>(line) * 9, 9), expected);
  }
}

TEST_F(Guests, SerialTransmitsByInterruptAlone) {
  vm_.start("serial_transmit");
  vm_.wait_for("SENT 00000200");
  vm_.send("x");
  EXPECT_EQ(vm_.wait_for_exit(), 0);
}

TEST_F(Guests, ClockAdvancesWithRealTime) {
  vm_.start("workload");
  vm_.wait_for("READY");
  auto nanoseconds = [&] { return std::stoull(vm_.ask("clock").substr(sizeof("NANOSECONDS"))); };
  unsigned long long before = nanoseconds();
  usleep(300000);
  unsigned long long passed = nanoseconds() - before;
  EXPECT_GT(passed, 300000000u);
  EXPECT_LT(passed, 3000000000u);
}

}  // namespace
}  // namespace native
