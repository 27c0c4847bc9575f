// What the host lacks: the device, the permission, the room. The message names it and the remedy,
// nothing is left behind, and what ran goes on.

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "tests/native/support/vm_process.h"

namespace native {
namespace {

class Foreground : public NativeTest {
 protected:
  VmHome home_;
};

// A /dev of their own for the commands of a test. Needs no KVM: that is what is tested.
class WithoutKvm : public ::testing::Test {
 protected:
  VmHome home_;

  void SetUp() override {
    if (geteuid() != 0) {
      GTEST_SKIP() << "another /dev needs root";
    }
    if (home_.quicksave({"version"}).status != 0) {
      GTEST_SKIP() << "the quicksave program is not built";
    }
  }

  // As a user who is nobody, with a /dev that holds `nodes` and little else.
  void use_dev_with(const std::string& nodes) {
    chmod(home_.path().c_str(), 0777);
    // Where everybody may read it, wherever the tree is.
    write_file(home_.file("hello"), read_file(guest_path("hello")));
    chmod(home_.file("hello").c_str(), 0644);
    home_.run_through({"unshare", "-m", "sh", "-c",
                       "mount -t tmpfs -o mode=755 none /dev && mknod -m 666 /dev/null c 1 3 && " +
                           nodes +
                           " && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"",
                       "sh"});
  }

  // Refused as a failure of the host, and nothing is left.
  void expect_refused(std::vector<std::string> more, const std::string& named) {
    std::vector<std::string> arguments = {"run", "--name", "t", "--kernel", home_.file("hello")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    CommandResult result = home_.quicksave(arguments);
    EXPECT_EQ(result.status, 125);
    EXPECT_EQ(result.err.rfind("error: cannot open /dev/kvm: " + named, 0), 0u) << result.err;
    EXPECT_NE(result.err.find("\nhint: "), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_FALSE(std::filesystem::exists(home_.path() + "/vms/t"));
    EXPECT_FALSE(std::filesystem::exists(home_.path() + "/run/t"));
  }

  void expect_doctor_says(const std::string& detail) {
    CommandResult result = home_.quicksave({"doctor", "--json"});
    EXPECT_EQ(result.status, 1);
    nlohmann::json report = nlohmann::json::parse(result.out);
    EXPECT_FALSE(report["fit"].get<bool>());
    for (const nlohmann::json& check : report["checks"]) {
      if (check["what"] != "/dev/kvm") {
        continue;
      }
      EXPECT_EQ(check["health"], "BAD");
      EXPECT_NE(check["detail"].get<std::string>().find(detail), std::string::npos) << result.out;
      EXPECT_NE(check["remedy"], "");
    }
  }
};

TEST_F(WithoutKvm, MissingDeviceIsNamedWithItsRemedy) {
  use_dev_with("true");
  expect_refused({}, "it does not exist");
  expect_refused({"-d"}, "it does not exist");
  expect_doctor_says("is not there");
}

TEST_F(WithoutKvm, PermissionThatIsMissingIsNamedWithBothSides) {
  use_dev_with("mknod -m 660 /dev/kvm c 10 232");
  const std::string both =
      "permission denied (you are uid 65534, groups: nogroup; the device is root:root 0660)";
  expect_refused({}, both);
  expect_refused({"-d"}, both);
  expect_doctor_says("permission denied: you are uid 65534");
}

TEST_F(WithoutKvm, DeviceWithoutADriverIsNamed) {
  use_dev_with("mknod -m 666 /dev/kvm c 10 254");
  expect_refused({}, "no driver stands behind it");
  expect_refused({"-d"}, "no driver stands behind it");
}

TEST_F(WithoutKvm, UnreadableKernelIsNamed) {
  write_file(home_.file("k"), read_file(guest_path("hello")));
  chmod(home_.file("k").c_str(), 0600);
  use_dev_with("true");
  CommandResult result = home_.quicksave({"run", "--name", "t", "--kernel", home_.file("k")});
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(result.err, "error: kernel \"" + home_.file("k") +
                            "\": Permission denied\nhint: make it readable for this user\n");
  EXPECT_FALSE(std::filesystem::exists(home_.path() + "/vms/t"));
}

// What the guest said is the result of the run: it is in the log, and a script is told that it lacks it.
TEST_F(Foreground, StdoutThatCannotBeWrittenIsAFailureOfTheHost) {
  home_.run_through({"sh", "-c", "exec \"$@\" >/dev/full", "sh"});
  CommandResult result = home_.quicksave({"run", "--name", "t", "--kernel", guest_path("hello")});
  EXPECT_EQ(result.status, 125);
  EXPECT_NE(result.err.find("write the guest's console: No space left on device"),
            std::string::npos)
      << result.err;
  EXPECT_NE(read_file(home_.path() + "/vms/t/console.log"), "");
}

TEST_F(Foreground, ReaderOfStdoutThatWentAwayIsNoFailure) {
  home_.run_through({"sh", "-c", "mkfifo \"$0\" && exec 3<>\"$0\" 4>\"$0\" 3<&- && exec \"$@\" >&4",
                     home_.file("pipe")});
  EXPECT_EQ(home_.quicksave({"run", "--name", "t", "--kernel", guest_path("hello")}).status, 0);
}

// A VM whose snapshots go to a file system of a few MiB.
class NoRoom : public NativeTest {
 protected:
  VmHome home_;
  VmProcess vm_{home_, "t"};

  void SetUp() override {
    NativeTest::SetUp();
    if (IsSkipped()) {
      return;
    }
    // In a mount namespace of this process: what is mounted goes with it.
    if (geteuid() != 0 || unshare(CLONE_NEWNS) != 0 ||
        mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
      GTEST_SKIP() << "a small file system needs root";
    }
    std::filesystem::create_directory(snapshots());
    ASSERT_EQ(mount("none", snapshots().c_str(), "tmpfs", 0, "size=6m,mode=0700"), 0);
    make_disk(home_.file("d"), 16 << 20);
    vm_.start("workload", {"--disk", home_.file("d") + ",format=raw"});
    ASSERT_TRUE(vm_.wait_for("READY"));
    vm_.ask("nonce 7\nfill 0 2048 1\ndisk-write 0 0 64 1");
  }
  void TearDown() override { umount2(snapshots().c_str(), MNT_DETACH); }

  std::string snapshots() { return home_.path() + "/snapshots"; }
  void make_room() {
    ASSERT_EQ(mount("none", snapshots().c_str(), "tmpfs", MS_REMOUNT, "size=256m,mode=0700"), 0);
  }
  void expect_nothing_left(const std::vector<std::string>& names) {
    EXPECT_EQ(home_.quicksave_json({"snapshot", "list", "t"}).size(), names.size());
    size_t objects = 0;
    for (const auto& entry : std::filesystem::directory_iterator(snapshots())) {
      objects += entry.path().filename() != ".lock";
    }
    EXPECT_EQ(objects, names.size());
    size_t references = 0;
    for (const auto& entry : std::filesystem::directory_iterator(home_.path() + "/vms/t/refs")) {
      EXPECT_EQ(std::count(names.begin(), names.end(), entry.path().filename()), 1);
      ++references;
    }
    EXPECT_EQ(references, names.size());
  }
  void expect_no_room_for(const std::string& name) {
    CommandResult result = home_.quicksave({"snapshot", "create", "t", name});
    EXPECT_EQ(result.status, 1);
    EXPECT_EQ(result.err.rfind("error: snapshot '" + name + "' was not made: ", 0), 0u)
        << result.err;
    EXPECT_NE(result.err.find("No space left on device"), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("\nhint: "), std::string::npos) << result.err;
    EXPECT_EQ(home_.state_of("t"), "running");
  }
};

TEST_F(NoRoom, TheVmGoesOnAndTheNextSnapshotIsWhole) {
  expect_no_room_for("clean");
  expect_nothing_left({});
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 7\n", 0), 0u);
  EXPECT_EQ(vm_.ask("disk-check 0 0 64 1"), "MATCH\n");
  // Nothing of the one that failed can be reverted to.
  EXPECT_EQ(home_.quicksave({"revert", "t", "clean"}).status, 1);
  EXPECT_EQ(home_.state_of("t"), "running");

  make_room();
  vm_.ask("disk-write 0 64 64 2\nnonce 8");
  vm_.snapshot("clean");
  expect_nothing_left({"clean"});
  vm_.ask("nonce 9\nfill 0 2048 3\ndisk-write 0 0 128 3");
  vm_.revert("clean");
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 8\n", 0), 0u);
  VmProcess other(home_, "o");
  other.start_from("t@clean", {"--verify"});
  for (VmProcess* vm : {&vm_, &other}) {
    EXPECT_EQ(vm->ask("disk-check 0 0 64 1"), "MATCH\n");
    EXPECT_EQ(vm->ask("disk-check 0 64 64 2"), "MATCH\n");
  }
}

TEST_F(NoRoom, ForASecondSnapshotLeavesTheFirst) {
  make_room();
  vm_.snapshot("clean");
  ASSERT_EQ(mount("none", snapshots().c_str(), "tmpfs", MS_REMOUNT, "size=11m,mode=0700"), 0);
  vm_.ask("fill 2048 2048 5\ndisk-write 0 0 64 5\nnonce 10");
  expect_no_room_for("later");
  expect_nothing_left({"clean"});
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 10\n", 0), 0u);
  EXPECT_EQ(home_.quicksave({"snapshot", "check", "t@clean"}).status, 0);
  vm_.revert("clean");
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 7\n", 0), 0u);
  EXPECT_EQ(vm_.ask("disk-check 0 0 64 1"), "MATCH\n");
  vm_.ask("disk-write 0 0 64 6");
  make_room();
  vm_.snapshot("later");
  VmProcess other(home_, "o");
  other.start_from("t@later", {"--verify"});
  EXPECT_EQ(other.ask("disk-check 0 0 64 6"), "MATCH\n");
}

}  // namespace
}  // namespace native
