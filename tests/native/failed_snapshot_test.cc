// Snapshots that are refused or fail half-way: the VM is as if they had never been asked for. The
// failures are planted (vmm/base/planted_fault.h).

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "tests/native/support/vm_process.h"

namespace native {
namespace {

class FailedSnapshot : public NativeTest {
 protected:
  FailedSnapshot() { ::setenv("QUICKSAVE_BINARY", QUICKSAVE_BINARY_PATH "-faulty", 1); }
  ~FailedSnapshot() override { ::unsetenv("QUICKSAVE_BINARY"); }

  void start(const std::string& fault) {
    make_disk(home_.file("d"), 16 << 20);
    vm_.start("workload", {"--disk", home_.file("d") + ",format=raw"},
              {"QUICKSAVE_FAULT=" + fault});
    ASSERT_TRUE(vm_.wait_for("READY"));
  }
  void expect_refused(const std::string& snapshot, const std::string& reason) {
    const size_t listed = home_.quicksave_json({"snapshot", "list", "t"}).size();
    CommandResult result = home_.quicksave({"snapshot", "create", "t", snapshot});
    EXPECT_EQ(result.status, 1);
    EXPECT_NE(result.err.find(reason), std::string::npos) << result.err;
    EXPECT_EQ(home_.quicksave_json({"snapshot", "list", "t"}).size(), listed);
  }
  void write_all(const std::string& seed) {
    vm_.ask("nonce " + seed + "\nfill 0 64 " + seed + "\ndisk-write 0 0 64 " + seed);
  }
  void expect_all(VmProcess& vm, const std::string& seed) {
    EXPECT_EQ(vm.ask("nonce").rfind("NONCE " + seed + "\n", 0), 0u) << seed;
    EXPECT_EQ(vm.ask("disk-check 0 0 64 " + seed), "MATCH\n");
  }

  VmHome home_;
  VmProcess vm_{home_, "t"};
};

TEST_F(FailedSnapshot, BareRevertGoesToTheOneBeforeIt) {
  start("write");
  write_all("1");
  const std::string memory = vm_.ask("hash 0 64");
  vm_.snapshot("clean");
  write_all("2");
  expect_refused("bad", "snapshot 'bad' was not made");
  vm_.ask("dirty 32");
  EXPECT_EQ(home_.quicksave({"revert", "t", "--verify"}).status, 0);
  expect_all(vm_, "1");
  EXPECT_EQ(vm_.ask("hash 0 64"), memory);
  EXPECT_EQ(home_.quicksave({"revert", "t", "bad"}).status, 1);
}

TEST_F(FailedSnapshot, TheNextOneIsWholeInPlaceAndInAnotherProcess) {
  start("write");
  write_all("1");
  vm_.snapshot("clean");
  write_all("2");
  expect_refused("bad", "snapshot 'bad' was not made");
  vm_.ask("disk-write 0 64 64 3\nnonce 3");
  const std::string memory = vm_.ask("hash 0 64");
  vm_.snapshot("good");
  write_all("4");
  vm_.revert("clean");
  expect_all(vm_, "1");
  vm_.revert("good");
  VmProcess other(home_, "o");
  other.start_from("t@good", {"--verify"});
  for (VmProcess* vm : {&vm_, &other}) {
    EXPECT_EQ(vm->ask("nonce").rfind("NONCE 3\n", 0), 0u);
    EXPECT_EQ(vm->ask("hash 0 64"), memory);
    EXPECT_EQ(vm->ask("disk-check 0 0 64 2\ndisk-check 0 64 64 3"), "MATCH\nMATCH\n");
  }
}

TEST_F(FailedSnapshot, TheFirstOneLeavesNothingToRevertTo) {
  start("write");
  write_all("1");
  expect_refused("bad", "snapshot 'bad' was not made");
  CommandResult bare = home_.quicksave({"revert", "t"});
  EXPECT_EQ(bare.status, 1);
  EXPECT_NE(bare.err.find("no snapshot to revert to"), std::string::npos) << bare.err;
  write_all("2");
  vm_.snapshot("good");
  write_all("3");
  vm_.revert("good");
  expect_all(vm_, "2");
}

TEST_F(FailedSnapshot, StateThatCouldNotBePutBackIsRefusedWhenItIsTaken) {
  start("invalid-state");
  write_all("1");
  expect_refused("s", "planted");
  EXPECT_EQ(home_.state_of("t"), "running");
  expect_all(vm_, "1");
}

// Files that cannot be opened again cost memory and nothing else.
TEST_F(FailedSnapshot, OneThatStaysInMemoryIsWholeAndSoAreThoseAboveIt) {
  start("reopen");
  write_all("1");
  vm_.snapshot("first");
  vm_.ask("disk-write 0 64 64 2\nnonce 2");
  vm_.snapshot("second");
  write_all("3");
  vm_.revert("first");
  expect_all(vm_, "1");
  vm_.revert("second");
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 2\n", 0), 0u);
  VmProcess other(home_, "o");
  other.start_from("t@second", {"--verify"});
  for (VmProcess* vm : {&vm_, &other}) {
    EXPECT_EQ(vm->ask("disk-check 0 0 64 1\ndisk-check 0 64 64 2"), "MATCH\nMATCH\n");
  }
}

TEST_F(FailedSnapshot, DiskThatNoLayerCouldNameIsRefusedWhenTheVmStarts) {
  for (const std::string name : {"a\tb", "a\nb", "a\xc2\x85", "a\xe2\x80\x8e"}) {
    for (const char* mode : {"overlay", "persist"}) {
      make_disk(home_.file(name), 1 << 20);
      const CommandResult result =
          home_.quicksave({"run", "--name", "bad", "-d", "--kernel", guest_path("workload"),
                           "--disk", home_.file(name) + ",format=raw,mode=" + mode});
      EXPECT_EQ(result.status, 1) << name;
      EXPECT_NE(result.err.find(name), std::string::npos) << result.err;
      EXPECT_NE(result.err.find("hint: rename"), std::string::npos) << result.err;
      EXPECT_EQ(home_.state_of("bad"), "");
    }
  }
}

TEST_F(FailedSnapshot, OneAboveAnImageThatChangedWhileTheVmRanIsRefused) {
  start("nothing");
  write_all("1");
  const std::filesystem::path image = home_.file("d");
  const auto before = std::filesystem::last_write_time(image);
  std::filesystem::last_write_time(image, before + std::chrono::seconds(1));
  expect_refused("s", "base image \"" + image.string() + "\" changed while the VM was running");
  expect_all(vm_, "1");
  std::filesystem::last_write_time(image, before);
  vm_.snapshot("s");
  write_all("2");
  vm_.revert("s");
  expect_all(vm_, "1");
}

// In the moment between what the guest did and what follows from it.
class EndedGuest : public FailedSnapshot, public testing::WithParamInterface<const char*> {};

TEST_P(EndedGuest, IsNotTakenForOneThatRuns) {
  start("reactions");
  vm_.send(std::string("echo now\n") + GetParam() + "\n");
  ASSERT_TRUE(vm_.wait_for("ECHO now\n"));
  CommandResult result;
  // The guest needs a moment from its last word to its last instruction.
  for (int i = 0; i < 100; ++i) {
    result = home_.quicksave({"snapshot", "create", "t", "s" + std::to_string(i)});
    if (result.status != 0) break;
  }
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("crashed, powered off or restarted"), std::string::npos) << result.err;
}

INSTANTIATE_TEST_SUITE_P(, EndedGuest, testing::Values("off", "reset", "triple-fault"),
                         [](const auto& name) {
                           std::string text = name.param;
                           std::erase(text, '-');
                           return text;
                         });

}  // namespace
}  // namespace native
