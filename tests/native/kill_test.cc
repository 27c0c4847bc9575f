// kill -9 at any moment of any operation: afterwards `ps` tells the truth, what is listed is whole,
// snapshots restore, everything can be removed, names are free, and the user's image is unharmed.
//
// Each operation is first timed, then killed at moments spread over that time and a little beyond:
// the VM's process, the command's process, or both. The moments are not the same in two runs.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/native/support/vm_process.h"

namespace native {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

enum class Victim { vm, command, both };
constexpr Victim kVictims[] = {Victim::vm, Victim::command, Victim::both};

// For each operation, shared by the three victims; QUICKSAVE_KILL_MOMENTS asks for more.
int moments() {
  const char* chosen = std::getenv("QUICKSAVE_KILL_MOMENTS");
  return chosen ? std::atoi(chosen) : 6;
}

class KillNine : public NativeTest {
 protected:
  VmHome home_;

  void SetUp() override {
    NativeTest::SetUp();
    if (IsSkipped()) {
      return;
    }
    make_disk(home_.file("d"), 1 << 20);
    std::ofstream(home_.file("d"), std::ios::in | std::ios::out | std::ios::binary) << "untouched";
    image_ = read_file(home_.file("d"));
    VmProcess keeper(home_, "keeper");
    keeper.start("workload", disk());
    ASSERT_TRUE(keeper.wait_for("READY"));
    keeper.ask("nonce 77\nfill 0 512 1\ndisk-write 0 0 64 1");
    keeper.snapshot("base");
    ASSERT_EQ(home_.quicksave({"kill", "keeper"}).status, 0);
  }

  std::vector<std::string> disk() { return {"--disk", home_.file("d") + ",format=raw"}; }

  // A VM that runs, with a snapshot and changes since.
  void start_victim() {
    VmProcess vm(home_, "t");
    vm.start_from("keeper@base");
    vm.ask("fill 512 1024 2\ndisk-write 0 64 64 2");
    vm.snapshot("first");
    vm.ask("fill 0 1024 3\ndisk-write 0 0 128 3");
  }

  // From the lock file, for a VM that cannot answer yet; 0 before there is one.
  pid_t pid_of_victim() { return std::atoi(read_file(home_.path() + "/vms/t/lock").c_str()); }

  microseconds time_of(const std::vector<std::string>& arguments) {
    const Clock::time_point start = Clock::now();
    CommandResult result = home_.quicksave(arguments);
    EXPECT_EQ(result.status, 0) << result.err;
    return std::chrono::duration_cast<microseconds>(Clock::now() - start);
  }

  // What the command said; its status is 137 if it was a victim.
  CommandResult kill_during(const std::vector<std::string>& arguments, microseconds moment,
                            Victim victim) {
    const pid_t before = pid_of_victim();
    const pid_t command = home_.begin(arguments);
    std::this_thread::sleep_for(moment);
    if (victim != Victim::command) {
      // Of an operation that makes the VM, the process may not have said who it is yet: it is the
      // command itself until it has.
      const pid_t vm = before > 0 ? before : pid_of_victim();
      if (vm > 0 && vm != command) {
        kill(vm, SIGKILL);
      }
    }
    if (victim != Victim::vm) {
      kill(command, SIGKILL);
    }
    return home_.finish(command);
  }

  // A VM whose command was killed may still be starting; one that was killed may still be closing
  // its files, and holds its lock until then. Either ends.
  void wait_until_settled() {
    for (int look = 0; look < 1000; ++look) {
      const std::string state = home_.state_of("t");
      if (state != "starting" && state != "unresponsive") {
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ADD_FAILURE() << "t is neither here nor gone";
  }

  void expect_order() {
    wait_until_settled();
    const nlohmann::json all = home_.quicksave_json({"ps"});
    for (const nlohmann::json& vm : all) {
      const bool lives = vm["pid"].is_number() && kill(vm["pid"].get<pid_t>(), 0) == 0;
      const std::string state = vm["state"];
      EXPECT_EQ(state == "running" || state == "paused", lives) << vm.dump();
      EXPECT_EQ(state == "stopped", !lives) << vm.dump();
    }
    for (const nlohmann::json& entry : home_.quicksave_json({"snapshot", "list"})) {
      EXPECT_TRUE(entry["damage"].is_null()) << entry.dump();
      const std::string name =
          entry["vm"].get<std::string>() + "@" + entry["name"].get<std::string>();
      EXPECT_EQ(home_.quicksave({"snapshot", "check", name}).status, 0) << name;
    }
    EXPECT_EQ(read_file(home_.file("d")), image_);
  }

  void expect_restores(const std::string& snapshot) {
    VmProcess other(home_, "o");
    other.start_from(snapshot, {"--verify"});
    EXPECT_EQ(other.ask("nonce").rfind("NONCE 77\n", 0), 0u);
    EXPECT_EQ(other.ask("disk-check 0 0 64 1"), "MATCH\n");
    EXPECT_EQ(home_.quicksave({"rm", "-f", "o"}).status, 0);
  }

  // Removes all but the keeper; its object stays alone.
  void expect_clean_after_removal() {
    for (const char* name : {"t", "o"}) {
      if (std::filesystem::exists(home_.path() + "/vms/" + name)) {
        CommandResult removed = home_.quicksave({"rm", "-f", name});
        EXPECT_EQ(removed.status, 0) << removed.err;
      }
    }
    // Leftovers of what was killed go with the next removal, whoever's it is.
    VmProcess next(home_, "t");
    next.start("workload", disk());
    EXPECT_TRUE(next.wait_for("READY"));
    EXPECT_EQ(home_.quicksave({"rm", "-f", "t"}).status, 0);
    EXPECT_EQ(names_in("vms"), std::vector<std::string>{"keeper"});
    EXPECT_EQ(names_in("run"), std::vector<std::string>{"keeper"});
    EXPECT_EQ(names_in("snapshots").size(), 2u)  // the lock and the keeper's
        << ::testing::PrintToString(names_in("snapshots"));
  }

  std::vector<std::string> names_in(const std::string& directory) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(home_.path() + "/" + directory)) {
      names.push_back(entry.path().filename());
    }
    return names;
  }

  // Kills `arguments` at every moment; `prepare` before each, `judge` after each.
  template <class Prepare, class Judge>
  void at_every_moment(const std::vector<std::string>& arguments, Prepare prepare, Judge judge) {
    prepare();
    const microseconds whole = time_of(arguments);
    expect_clean_after_removal();
    for (int i = 0; i < moments() && !HasFailure(); ++i) {
      const microseconds moment = whole * (i + 1) * 5 / (4 * moments());
      const Victim victim = kVictims[i % std::size(kVictims)];
      SCOPED_TRACE("killed " + std::to_string(static_cast<int>(victim)) + " after " +
                   std::to_string(moment.count()) + " us");
      prepare();
      const CommandResult result = kill_during(arguments, moment, victim);
      expect_order();
      judge(result);
      expect_restores("keeper@base");
      expect_clean_after_removal();
    }
  }

  bool is_listed(const std::string& name) {
    for (const nlohmann::json& entry : home_.quicksave_json({"snapshot", "list", "t"})) {
      if (entry["name"] == name) {
        return true;
      }
    }
    return false;
  }

  std::string image_;
};

TEST_F(KillNine, DuringRun) {
  std::vector<std::string> arguments = {"run", "--name", "t",        "-d",
                                        "-m",  "64M",    "--kernel", guest_path("workload")};
  for (const std::string& word : disk()) {
    arguments.push_back(word);
  }
  at_every_moment(
      arguments, [] {},
      [&](const CommandResult& result) {
        if (result.status == 0) {
          EXPECT_EQ(result.out, "t\n");
        } else if (result.status != 137) {  // the VM died and the command tells it
          EXPECT_NE(result.err.find("error: "), std::string::npos);
          EXPECT_EQ(home_.state_of("t"), "");
        }
      });
}

TEST_F(KillNine, DuringRestore) {
  at_every_moment(
      {"restore", "keeper@base", "--name", "t", "-d"}, [] {},
      [&](const CommandResult& result) {
        if (result.status != 0 && result.status != 137) {
          EXPECT_NE(result.err.find("error: "), std::string::npos);
          EXPECT_EQ(home_.state_of("t"), "");
        }
      });
}

TEST_F(KillNine, DuringSnapshotCreate) {
  at_every_moment(
      {"snapshot", "create", "t", "second"}, [this] { start_victim(); },
      [&](const CommandResult& result) {
        EXPECT_TRUE(is_listed("first"));
        if (result.status == 0) {
          EXPECT_TRUE(is_listed("second")) << "promised and lost";
        }
        expect_restores("t@first");
      });
}

TEST_F(KillNine, DuringRevert) {
  at_every_moment(
      {"revert", "t", "first"}, [this] { start_victim(); },
      [&](const CommandResult&) {
        // A revert whose command has gone is completed all the same.
        if (home_.state_of("t") == "running") {
          VmProcess vm(home_, "t");
          EXPECT_EQ(vm.ask("nonce").rfind("NONCE 77\n", 0), 0u);
          EXPECT_EQ(home_.quicksave({"revert", "t", "first", "--verify"}).status, 0);
        }
        expect_restores("t@first");
      });
}

TEST_F(KillNine, DuringRemoval) {
  at_every_moment(
      {"rm", "-f", "t"}, [this] { start_victim(); },
      [&](const CommandResult& result) {
        if (result.status == 0) {
          EXPECT_EQ(home_.state_of("t"), "");
        }
      });
}

TEST_F(KillNine, DuringSnapshotDelete) {
  at_every_moment(
      {"snapshot", "delete", "t@first"},
      [this] {
        start_victim();
        EXPECT_EQ(home_.quicksave({"kill", "t"}).status, 0);
      },
      [&](const CommandResult& result) {
        if (result.status == 0) {
          EXPECT_FALSE(is_listed("first"));
        }
      });
}

}  // namespace
}  // namespace native
