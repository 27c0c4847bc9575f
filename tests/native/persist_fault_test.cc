// Persistent disks when something goes wrong: kill -9, a snapshot that cannot be written, a host
// without room.

#include <signal.h>
#include <unistd.h>

#include "tests/native/support/persist.h"

namespace native {
namespace {

// The VM is killed at moments around a snapshot and a revert. What was flushed before is there, in
// what the record names; snapshots that are listed are whole.
TEST_F(Persist, KillNineLosesNothingFlushedAndHarmsNoSnapshot) {
  const std::string file = image("d.qcow2");
  for (int round = 0; round < 12; ++round) {
    SCOPED_TRACE(round);
    fs::remove(file);
    image("d.qcow2");
    const std::string name = "k" + std::to_string(round);
    VmProcess vm(home_, name);
    vm.start("workload", {"--disk", persist(file)});
    ASSERT_TRUE(vm.wait_for("READY"));
    write(vm, 0, 100, 1);
    vm.ask("fill 0 2048 1");
    vm.snapshot("a");
    write(vm, 50, 100, 2);
    flush(vm);
    const pid_t pid = home_.pid_of(name);
    const bool reverts = round % 2 == 1;
    const pid_t command = reverts ? home_.begin({"revert", name, "a"})
                                  : home_.begin({"snapshot", "create", name, "b"});
    ::usleep(static_cast<useconds_t>(1000 + round * 3000));
    ::kill(pid, SIGKILL);
    home_.finish(command);
    ASSERT_TRUE(vm.wait_until_gone());
    // The kernel takes the ring of a killed process apart in the background; until then it holds
    // the image's locks.
    ASSERT_TRUE(comes_true([&] {
      return std::system(("qemu-img info " + head(name) + " >/dev/null 2>&1").c_str()) == 0;
    }));

    const std::string newest = head(name);
    expect_clean(newest, true);
    expect_clean(file);
    expect_pattern(content(file), 0, 100, 1);
    const std::string bytes = content(newest);
    expect_pattern(bytes, 0, 50, 1);
    // After a revert that took place the disk is the snapshot's again.
    const bool was_reverted =
        reverts && bytes.compare(50 * kSectorBytes, kSectorBytes, pattern(50, 1, 1)) == 0;
    if (!was_reverted) expect_pattern(bytes, 50, 100, 2);

    for (const nlohmann::json& listed : home_.quicksave_json({"snapshot", "list", name})) {
      const std::string snapshot = name + "@" + listed["name"].get<std::string>();
      EXPECT_EQ(home_.quicksave({"snapshot", "check", snapshot}).status, 0) << snapshot;
      VmProcess again(home_, name + "-" + listed["name"].get<std::string>());
      again.start_from(snapshot);
      expect(again, 0, 50, 1);
      if (listed["name"] == "b") expect(again, 50, 100, 2);
      EXPECT_EQ(home_.quicksave({"kill", again.name()}).status, 0);
      EXPECT_EQ(home_.quicksave({"rm", "--force", again.name()}).status, 0);
    }
    const CommandResult removed = home_.quicksave({"rm", "--force", name});
    EXPECT_EQ(removed.status, 0) << removed.err;
    EXPECT_EQ(std::distance(fs::directory_iterator(home_.path() + "/snapshots"),
                            fs::directory_iterator()),
              1)
        << "more than the store's lock is left";
  }
}

// The snapshot's files cannot be written; its split of the disk stays, and the next one has it too.
TEST_F(Persist, SnapshotThatFailsHarmsNothingAndTheNextIsWhole) {
  ::setenv("QUICKSAVE_BINARY", QUICKSAVE_BINARY_PATH "-faulty", 1);
  for (const bool is_first : {true, false}) {
    SCOPED_TRACE(is_first);
    const std::string name = is_first ? "t" : "u";
    const std::string file = image(name + ".qcow2");
    VmProcess vm(home_, name);
    vm.start("workload", {"--disk", persist(file)}, {"QUICKSAVE_FAULT=write"});
    write(vm, 0, 100, 1);
    if (!is_first) vm.snapshot("early");
    write(vm, 0, 50, 2);
    const CommandResult failed = home_.quicksave({"snapshot", "create", name, "bad"});
    EXPECT_EQ(failed.status, 1);
    write(vm, 0, 20, 3);
    flush(vm);
    vm.snapshot("good");
    write(vm, 0, 10, 4);
    vm.revert("good");
    expect(vm, 0, 20, 3);
    expect(vm, 20, 30, 2);
    expect(vm, 50, 50, 1);
    power_off(vm);
    const std::string bytes = content(object("good", name) + "/disk-0.qcow2");
    expect_pattern(bytes, 0, 20, 3);
    expect_pattern(bytes, 20, 30, 2);
    expect_pattern(bytes, 50, 50, 1);
    EXPECT_EQ(heads_on_disk(name).size(), 1u);
    VmProcess other(home_, name + "-other");
    other.start_from(name + "@good");
    expect(other, 20, 30, 2);
  }
  ::unsetenv("QUICKSAVE_BINARY");
}

TEST_F(Persist, RevertDropsTheFileThatWasFrozenForASnapshotThatFailed) {
  ::setenv("QUICKSAVE_BINARY", QUICKSAVE_BINARY_PATH "-faulty", 1);
  vm_.start("workload", {"--disk", persist(image("d.qcow2")), "-m", "512M"},
            {"QUICKSAVE_FAULT=write"});
  write(vm_, 0, 100, 1);
  vm_.snapshot("early");
  for (const bool reverts_while_it_is_written : {false, true}) {
    SCOPED_TRACE(reverts_while_it_is_written);
    write(vm_, 0, 50, 2);
    std::vector<std::string> create = {"snapshot", "create", "t", "bad"};
    if (reverts_while_it_is_written) {
      vm_.ask("fill 0 100000 1");
      create.push_back("--no-wait");
    }
    EXPECT_EQ(home_.quicksave(create).status, reverts_while_it_is_written ? 0 : 1);
    vm_.revert("early");
    expect(vm_, 0, 100, 1);
  }
  EXPECT_EQ(home_.quicksave({"kill", "t"}).status, 0);
  ::unsetenv("QUICKSAVE_BINARY");
  EXPECT_EQ(heads_on_disk().size(), 1u);
  expect_clean(head());
  expect_pattern(content(head()), 0, 100, 1);
}

TEST_F(Persist, NewestStateAboveASnapshotThatFailedIsWholeForQemu) {
  ::setenv("QUICKSAVE_BINARY", QUICKSAVE_BINARY_PATH "-faulty", 1);
  vm_.start("workload", {"--disk", persist(image("d.qcow2"))}, {"QUICKSAVE_FAULT=write"});
  write(vm_, 0, 100, 1);
  vm_.snapshot("early");
  write(vm_, 0, 50, 2);
  EXPECT_EQ(home_.quicksave({"snapshot", "create", "t", "bad"}).status, 1);
  write(vm_, 0, 20, 3);
  power_off(vm_);
  ::unsetenv("QUICKSAVE_BINARY");
  expect_clean(head());
  const std::string bytes = content(head());
  expect_pattern(bytes, 0, 20, 3);
  expect_pattern(bytes, 20, 30, 2);
  expect_pattern(bytes, 50, 50, 1);
}

// A file system of its own that is full.
class PersistWithoutRoom : public Persist {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "a small file system needs root";
    Persist::SetUp();
    if (IsSkipped()) return;
    fs::create_directory(home_.file("small"));
    shell("mount -t tmpfs -o size=12m none small");
    is_mounted_ = true;
  }
  void TearDown() override {
    home_.quicksave({"kill", "t"});
    vm_.wait_until_gone();
    if (is_mounted_) shell("umount small");
  }
  bool is_mounted_ = false;
};

TEST_F(PersistWithoutRoom, PausesTheVmAndGoesOnWhenThereIsRoom) {
  image("small/d.qcow2");
  const std::string file = home_.file("small/d.qcow2");
  start(persist(file));
  write(vm_, 0, 8192, 1);
  flush(vm_);
  shell("dd if=/dev/zero of=small/ballast bs=64k || true");
  vm_.send("disk-write 0 8192 16384 2\n");
  ASSERT_TRUE(comes_true([&] { return home_.state_of("t") == "paused"; }));
  shell("mount -o remount,size=40m small");
  const std::size_t from = vm_.log().size();
  EXPECT_EQ(home_.quicksave({"resume", "t"}).status, 0);
  EXPECT_TRUE(vm_.wait_for("STATUS 0", from));
  flush(vm_);
  expect(vm_, 0, 8192, 1);
  expect(vm_, 8192, 16384, 2);
  power_off(vm_);
  expect_clean(file);
  const std::string bytes = content(file);
  expect_pattern(bytes, 0, 8192, 1);
  expect_pattern(bytes, 8192, 16384, 2);
}

// A home that is a small file system: a snapshot without room is refused, and the guest goes on.
class PersistInAFullHome : public Persist {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "a small file system needs root";
    Persist::SetUp();
    if (IsSkipped()) return;
    is_mounted_ = std::system(("mount -t tmpfs -o size=48m none " + home_.path()).c_str()) == 0;
    ASSERT_TRUE(is_mounted_);
  }
  void TearDown() override {
    if (!is_mounted_) return;
    home_.quicksave({"kill", "t"});
    vm_.wait_until_gone();
    EXPECT_EQ(std::system(("umount -l " + home_.path()).c_str()), 0);
  }
  bool is_mounted_ = false;
};

TEST_F(PersistInAFullHome, SnapshotAndRevertAreRefusedAndTheGuestGoesOn) {
  const std::string file = image("d.qcow2");
  start(persist(file));
  write(vm_, 0, 100, 1);
  vm_.ask("fill 0 2048 1");
  vm_.snapshot("a");
  write(vm_, 0, 50, 2);
  flush(vm_);
  const auto leave_kib = [&](const std::string& left) {
    shell(
        "rm -f ballast; free=$(df -k --output=avail . | tail -1); "
        "dd if=/dev/zero of=ballast bs=1k count=$((free - " +
        left + ")) || true");
  };
  for (const char* left : {"4096", "1024", "128"}) {
    SCOPED_TRACE(left);
    leave_kib(left);
    vm_.ask("fill 0 2048 7");
    EXPECT_EQ(home_.quicksave({"snapshot", "create", "t", "b"}).status, 1);
    EXPECT_EQ(home_.state_of("t"), "running");
    flush(vm_);
    expect(vm_, 0, 50, 2);
  }
  // Not even the record of what is written now: flushes wait, the VM pauses, and goes on with room.
  leave_kib("16");
  EXPECT_EQ(home_.quicksave({"snapshot", "create", "t", "b"}).status, 1);
  const std::size_t from = vm_.log().size();
  vm_.send("disk-flush 0\n");
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  fs::remove(home_.file("ballast"));
  EXPECT_EQ(home_.quicksave({"resume", "t"}).status, 0);
  ASSERT_TRUE(vm_.wait_for("STATUS 0", from));
  vm_.snapshot("c");
  vm_.revert("a");
  expect(vm_, 0, 100, 1);
  vm_.revert("c");
  expect(vm_, 0, 50, 2);
  power_off(vm_);
  expect_clean(head());
  expect_pattern(content(object("c") + "/disk-0.qcow2"), 0, 50, 2);
}

}  // namespace
}  // namespace native
