// The program as a user meets it, with a launcher that has no machine: processes are forked, their
// output and exit status read.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/vmm/control/support/fake_vm.h"
#include "tests/vmm/control/support/temporary_home.h"
#include "vmm/base/log.h"
#include "vmm/control/api_server.h"
#include "vmm/control/cli.h"
#include "vmm/control/console_hub.h"

namespace control {
namespace {

using nlohmann::json;

// What the kernel command line says decides how the fake guest fares.
class FakeLauncher final : public Launcher {
 public:
  int launch(LaunchRequest request) override {
    const std::string& append = request.boot->append;
    const auto says = [&](const char* word) { return append.find(word) != std::string::npos; };
    if (says("refuse")) {
      const Error error = make_error(ErrorKind::corrupt, "kernel is bad").with_hint("take another");
      if (!request.ready_pipe) base::log(base::LogLevel::error, "{}", error.message());
      report_failure(request.ready_pipe, error);
      return 1;
    }
    if (says("vanish")) ::abort();
    Loop loop;
    FakeVm vm;
    for (const VmState state : {VmState::paused, VmState::halted, VmState::unconfigured}) {
      if (says(std::string(name_of(state)).c_str())) vm.state = state;
    }
    auto hub =
        std::move(*ConsoleHub::create(loop, {.log_file = request.directory.console_log(),
                                             .socket_path = request.directory.console_socket(),
                                             .target = request.console}));
    if (says("late")) ::usleep(500'000);
    auto server = std::move(*ApiServer::create(loop, vm, request.directory.api_socket()));
    vm.on_kill = [&] { loop.stop(); };
    vm.on_power_button = [&] {
      if (says("end-at-press")) ::_exit(0);
      if (!says("deaf")) loop.stop();
    };
    end_on_signals(loop, [&](int) {
      if (!says("stubborn")) loop.stop();
    });
    constexpr std::string_view kHello = "hello from the guest\r\n";
    hub->write({reinterpret_cast<const u8*>(kHello.data()), kHello.size()});
    report_ready(request.ready_pipe);
    if (says("poweroff")) loop.post([&] { loop.stop(); });
    loop.run();
    if (says("writes-long")) {
      (void)record_ending(request.directory);
      ::usleep(1'500'000);
      std::ofstream(request.directory.path() + "/written") << "all";
    }
    server->finish();
    if (!hub->finish()) return 1;
    return says("crash") ? 1 : 0;
  }
  int bench(const std::vector<std::string>& arguments) override {
    return static_cast<int>(arguments.size()) + 40;
  }
};

struct Outcome {
  int status = -1;
  std::string out;
  std::string err;
};

std::string contents(const std::string& path) {
  if (!std::filesystem::is_regular_file(path)) return "";  // /dev/full has no end
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class CommandLine : public testing::Test {
 protected:
  void SetUp() override {
    kernel_ = home_.path() + "/vmlinuz";
    std::ofstream(kernel_) << "kernel";
  }
  void TearDown() override {
    const Result<std::vector<std::string>> names = list_vm_names(home_.home());
    for (const std::string& name : *names) {
      const Result<VmDirectory> vm = find_vm_directory(home_.home(), name);
      const auto owner = owner_of(*vm);
      if (owner && *owner && **owner > 1) ::kill(static_cast<pid_t>(**owner), SIGKILL);
    }
  }

  Outcome quicksave(std::vector<std::string> words) { return finish(begin(std::move(words))); }
  // The same in two steps, for what happens meanwhile. One at a time.
  pid_t begin(std::vector<std::string> words) {
    words.insert(words.begin(), "quicksave");
    ::unlink(err_.c_str());
    if (out_.starts_with(home_.path())) ::unlink(out_.c_str());
    const pid_t child = ::fork();
    if (child == 0) {
      ::dup2(::open("/dev/null", O_RDONLY), 0);
      ::dup2(::open(out_.c_str(), O_WRONLY | O_CREAT, 0600), 1);
      ::dup2(::open(err_.c_str(), O_WRONLY | O_CREAT, 0600), 2);
      std::vector<char*> arguments;
      for (std::string& word : words) arguments.push_back(word.data());
      arguments.push_back(nullptr);
      FakeLauncher launcher;
      ::_exit(control::main(static_cast<int>(words.size()), arguments.data(), launcher));
    }
    return child;
  }
  Outcome finish(pid_t child) {
    int status = 0;
    ::waitpid(child, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status), contents(out_),
            contents(err_)};
  }
  Outcome run(const std::string& append, std::vector<std::string> more = {}) {
    std::vector<std::string> words = {"run", "--kernel", kernel_, "--append", append};
    words.insert(words.end(), more.begin(), more.end());
    return quicksave(words);
  }
  std::vector<std::string> vms() { return *list_vm_names(home_.home()); }

  TemporaryHome home_;
  std::string out_ = home_.path() + "/.out";
  std::string err_ = home_.path() + "/.err";
  std::string kernel_;
};

TEST_F(CommandLine, ForegroundPrintsTheConsoleAndCleansUp) {
  const Outcome done = run("poweroff");
  EXPECT_EQ(done.status, 0) << done.err;
  EXPECT_EQ(done.out, "hello from the guest\r\n");
  EXPECT_EQ(done.err, "");
  EXPECT_TRUE(vms().empty());
}

TEST_F(CommandLine, ACrashedGuestIsStatusOneAndKeepsANamedVm) {
  EXPECT_EQ(run("poweroff crash", {"--name", "t"}).status, 1);
  EXPECT_EQ(vms(), std::vector<std::string>{"t"});
  EXPECT_EQ(quicksave({"logs", "t"}).out, "hello from the guest\r\n");
  EXPECT_EQ(quicksave({"rm", "t"}).status, 0);
  EXPECT_TRUE(vms().empty());
}

TEST_F(CommandLine, DetachedLifeFromRunToRm) {
  const Outcome started = run("", {"--name", "t", "-d", "--cpus", "2", "-m", "64M"});
  ASSERT_EQ(started.status, 0) << started.err;
  EXPECT_EQ(started.out, "t\n");

  const json listed = json::parse(quicksave({"ps", "--json"}).out);
  ASSERT_EQ(listed.size(), 1u);
  EXPECT_EQ(listed[0]["name"], "fake");
  EXPECT_EQ(listed[0]["state"], "running");
  EXPECT_GT(listed[0]["pid"], 1);
  EXPECT_NE(quicksave({"ps"}).out.find("running"), std::string::npos);

  const Outcome second = run("", {"--name", "t", "-d"});
  EXPECT_EQ(second.status, 1);
  EXPECT_NE(second.err.find("error: VM \"t\" exists already"), std::string::npos) << second.err;
  EXPECT_EQ(quicksave({"rm", "t"}).status, 1);

  EXPECT_EQ(quicksave({"logs", "t"}).out, "hello from the guest\r\n");
  EXPECT_EQ(quicksave({"pause", "t"}).status, 0);
  EXPECT_EQ(quicksave({"resume", "t"}).status, 0);
  const json reverted = json::parse(quicksave({"revert", "t", "clean", "--json"}).out);
  EXPECT_EQ(reverted["total_us"], 42);
  EXPECT_EQ(reverted["phases_us"]["memory"], 30);
  EXPECT_NE(quicksave({"revert", "t"}).out.find("42 us (7 pages, 3 clusters"), std::string::npos);
  const Outcome missing = quicksave({"revert", "t@missing"});
  EXPECT_EQ(missing.status, 1);
  EXPECT_EQ(missing.err, "error: no snapshot \"missing\"\nhint: try another\n");
  const json made = json::parse(quicksave({"snapshot", "create", "t", "a", "--json"}).out);
  EXPECT_EQ(made["pause_us"], 5);
  EXPECT_EQ(made["name"], "a");

  EXPECT_EQ(quicksave({"stop", "t"}).status, 0);
  const json stopped = json::parse(quicksave({"ps", "--json"}).out);
  EXPECT_EQ(stopped[0]["name"], "t");
  EXPECT_EQ(stopped[0]["state"], "stopped");
  EXPECT_TRUE(stopped[0]["pid"].is_null());
  const Outcome late = quicksave({"revert", "t"});
  EXPECT_EQ(late.status, 1);
  EXPECT_NE(late.err.find("does not run"), std::string::npos);
  EXPECT_EQ(quicksave({"rm", "t"}).status, 0);
  EXPECT_EQ(json::parse(quicksave({"ps", "--json"}).out), json::array());
}

TEST_F(CommandLine, StopKillsAGuestThatIsDeaf) {
  ASSERT_EQ(run("deaf", {"--name", "t", "-d"}).status, 0);
  const Outcome stopped = quicksave({"stop", "-t", "0", "t"});
  EXPECT_EQ(stopped.status, 0) << stopped.err;
  EXPECT_NE(stopped.err.find("did not power off"), std::string::npos);
}

TEST_F(CommandLine, NobodyKillsAVmThatStillWrites) {
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"stop", "-t", "1", "t"}, {"kill", "t"}}) {
    ASSERT_EQ(run("writes-long", {"--name", "t", "-d"}).status, 0);
    const Outcome ended = quicksave(words);
    EXPECT_EQ(ended.status, 0) << ended.err;
    EXPECT_EQ(ended.err, "");
    EXPECT_EQ(contents(find_vm_directory(home_.home(), "t")->path() + "/written"), "all");
    EXPECT_EQ(quicksave({"rm", "t"}).status, 0);
  }
}

TEST_F(CommandLine, PsSaysThatAVmEnds) {
  ASSERT_EQ(run("writes-long", {"--name", "t", "-d"}).status, 0);
  const pid_t killer = begin({"kill", "t"});
  const VmDirectory vm = *find_vm_directory(home_.home(), "t");
  for (int look = 0; look < 1000 && !is_ending(vm); ++look) ::usleep(1000);
  int status = 0;
  EXPECT_EQ(json::parse(quicksave({"ps", "--json"}).out)[0]["state"], "ending");
  ::waitpid(killer, &status, 0);
  EXPECT_EQ(json::parse(quicksave({"ps", "--json"}).out)[0]["state"], "stopped");
}

TEST_F(CommandLine, StopWaitsForAVmThatIsStarting) {
  const pid_t child = begin({"run", "--name", "t", "--kernel", kernel_, "--append", "late"});
  while (vms().empty()) ::usleep(1000);
  const VmDirectory vm = *find_vm_directory(home_.home(), "t");
  for (auto owner = owner_of(vm); !owner || !*owner; owner = owner_of(vm)) ::usleep(1000);
  const Outcome stopped = quicksave({"stop", "t"});
  EXPECT_EQ(stopped.status, 0) << stopped.err;
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST_F(CommandLine, KillEndsAProcessThatDoesNotListen) {
  ASSERT_EQ(run("", {"--name", "t", "-d"}).status, 0);
  const Result<VmDirectory> vm = find_vm_directory(home_.home(), "t");
  ::kill(static_cast<pid_t>(**owner_of(*vm)), SIGSTOP);
  EXPECT_EQ(json::parse(quicksave({"ps", "--json"}).out)[0]["state"], "unresponsive");
  EXPECT_EQ(quicksave({"kill", "t"}).status, 0);
  EXPECT_EQ(quicksave({"rm", "t"}).status, 0);
}

TEST_F(CommandLine, ADetachedStartThatFailsSaysWhyAndLeavesNothing) {
  const Outcome refused = run("refuse", {"--name", "t", "-d"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_EQ(refused.out, "");
  EXPECT_EQ(refused.err, "error: kernel is bad\nhint: take another\n");
  EXPECT_TRUE(vms().empty());
  const Outcome vanished = run("vanish", {"--name", "t", "-d"});
  EXPECT_EQ(vanished.status, 125);
  EXPECT_NE(vanished.err.find("ended before the guest ran"), std::string::npos);
  EXPECT_TRUE(vms().empty());
  EXPECT_EQ(run("refuse", {"--name", "t"}).status, 1);
  EXPECT_TRUE(vms().empty());
}

TEST_F(CommandLine, WhatCanBeRefusedIsRefusedBeforeAnythingExists) {
  std::ofstream(home_.path() + "/empty");
  const std::string disk = home_.path() + "/disk";
  std::ofstream(disk) << "disk";
  const std::vector<std::vector<std::string>> bad = {
      {"--kernel", "/nonexistent"},
      {"--kernel", "/"},
      {"--kernel", "/dev/zero"},
      {"--kernel", ""},
      {"--kernel", home_.path() + "/empty"},
      {"--kernel", kernel_, "--initrd", "/nonexistent"},
      {"--kernel", kernel_, "--disk", disk},
      {"--kernel", kernel_, "--disk", disk + ",format=vmdk"},
      {"--kernel", kernel_, "--disk", disk + ",format=raw,colour=red"},
      {"--kernel", kernel_, "--disk", "/nonexistent,format=raw"},
      {"--kernel", kernel_, "-m", "0"},
      {"--kernel", kernel_, "-m", "12Q"},
      {"--kernel", kernel_, "-m", "65G"},
      {"--kernel", kernel_, "--cpus", "0"},
      {"--kernel", kernel_, "--cpus", "65"},
      {"--kernel", kernel_, "--cpus", "-1"},
      {"--kernel", kernel_, "--name", "../x"},
      {"--kernel", kernel_, "--append", "a\nb"},
      {"--kernel", kernel_, "--append", std::string(3000, 'a')},
      {"--kernel", kernel_, "--on-enospc", "explode"},
      {"--kernel", kernel_, "--no-such-flag"},
      {"--kernel", kernel_, "--name", ""},
      {},
  };
  for (std::vector<std::string> words : bad) {
    words.insert(words.begin(), "run");
    const Outcome refused = quicksave(words);
    EXPECT_TRUE(refused.status == 1 || refused.status == 2) << json(words);
    EXPECT_EQ(refused.err.rfind("error: ", 0), 0u) << refused.err;
    EXPECT_EQ(refused.out, "");
    EXPECT_FALSE(std::filesystem::exists(home_.path() + "/vms")) << json(words);
  }
}

TEST_F(CommandLine, WhatIsNotUtf8IsRefusedByTheNameOfItsOption) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> bad = {
      {"--kernel", {"run", "--kernel", "k\xff.elf", "--name", "t", "-d"}},
      {"--append", {"run", "--kernel", kernel_, "--append", "x=\xff", "-d"}},
      {"--disk", {"run", "--kernel", kernel_, "--disk", "\xff.raw,format=raw", "-d"}},
      {"--desc", {"snapshot", "create", "t", "s", "--desc", "\xff"}},
      {"NAME", {"revert", "t", "\xff"}},
      {"VM", {"pause", "\xc3"}},
  };
  for (const auto& [option, words] : bad) {
    const Outcome refused = quicksave(words);
    EXPECT_EQ(refused.status, 2) << option;
    EXPECT_EQ(refused.err, "error: " + option + ": what is given is not UTF-8\n");
    EXPECT_FALSE(std::filesystem::exists(home_.path() + "/vms")) << option;
  }
  EXPECT_EQ(run("poweroff größe=1").status, 0);
}

TEST_F(CommandLine, AWorkingDirectoryThatIsNotUtf8ServesOnlyAbsoluteNames) {
  const std::filesystem::path before = std::filesystem::current_path();
  const std::string here = home_.path() + "/\xff";
  std::filesystem::create_directory(here);
  std::filesystem::current_path(here);
  std::ofstream("k") << "kernel";
  const Outcome refused = quicksave({"run", "--kernel", "k"});
  const Outcome done = run("poweroff");
  std::filesystem::current_path(before);
  EXPECT_EQ(refused.status, 2);
  EXPECT_NE(refused.err.find("working directory"), std::string::npos) << refused.err;
  EXPECT_EQ(done.status, 0) << done.err;
}

TEST_F(CommandLine, AnEmptyNameIsNotTheDefaultOne) {
  ASSERT_EQ(run("", {"--name", "t", "-d"}).status, 0);
  const std::vector<std::vector<std::string>> bad = {
      {"snapshot", "create", "t", ""},
      {"snapshot", "list", ""},
      {"revert", "t", ""},
      {"revert", "t@"},
      {"restore", "t@s", "--name", ""},
      {"restore", "t@s", "--name="},
  };
  for (const std::vector<std::string>& words : bad) {
    const Outcome refused = quicksave(words);
    EXPECT_EQ(refused.status, 2) << json(words);
    EXPECT_NE(refused.err.find("name"), std::string::npos) << refused.err;
  }
}

TEST_F(CommandLine, LostOutputIsAFailure) {
  ASSERT_EQ(run("", {"--name", "t", "-d"}).status, 0);
  const std::vector<std::vector<std::string>> verbs = {
      {"ps", "--json"}, {"logs", "t"}, {"snapshot", "create", "t", "--json"}, {"version"}};
  out_ = "/dev/full";
  for (const std::vector<std::string>& words : verbs) {
    const Outcome lost = quicksave(words);
    EXPECT_EQ(lost.status, 125) << json(words);
    EXPECT_EQ(lost.err, "error: write the output: No space left on device\n");
  }
  const Outcome refused = quicksave({"inspect", "nobody"});
  EXPECT_EQ(refused.status, 1);  // there was nothing to lose
}

TEST_F(CommandLine, StopKillsAVmThatCannotAnswerTheButton) {
  for (const char* state : {"paused", "halted", "unconfigured"}) {
    ASSERT_EQ(run(state, {"--name", "t", "-d"}).status, 0);
    const Outcome stopped = quicksave({"stop", "t"});
    EXPECT_EQ(stopped.status, 0) << stopped.err;
    EXPECT_EQ(stopped.err,
              fmt::format("warning: fake is {}, not running: it cannot answer the power "
                          "button; killed\n",
                          state));
    EXPECT_EQ(quicksave({"rm", "t"}).status, 0);
  }
}

TEST_F(CommandLine, StopEndsAProcessThatDoesNotListen) {
  ASSERT_EQ(run("", {"--name", "t", "-d"}).status, 0);
  const Result<VmDirectory> vm = find_vm_directory(home_.home(), "t");
  ::kill(static_cast<pid_t>(**owner_of(*vm)), SIGSTOP);
  const Outcome stopped = quicksave({"stop", "-t", "1", "t"});
  EXPECT_EQ(stopped.status, 0) << stopped.err;
  EXPECT_NE(stopped.err.find("did not power off within 1 s"), std::string::npos) << stopped.err;
  EXPECT_EQ(quicksave({"rm", "t"}).status, 0);
}

TEST_F(CommandLine, StopIsDoneWhenTheVmEndsWithoutAnAnswer) {
  ASSERT_EQ(run("end-at-press", {"--name", "t", "-d"}).status, 0);
  const Outcome stopped = quicksave({"stop", "t"});
  EXPECT_EQ(stopped.status, 0) << stopped.err;
  EXPECT_EQ(stopped.err, "");
}

TEST_F(CommandLine, ManyRemoveOneVmAndOnlyMissItOrSeeItGo) {
  ASSERT_EQ(run("", {"--name", "t", "-d"}).status, 0);
  std::vector<pid_t> children;
  for (int i = 0; i < 6; ++i) {
    const pid_t child = ::fork();
    if (child == 0) {
      out_ = fmt::format("{}/.out{}", home_.path(), i);
      err_ = fmt::format("{}/.err{}", home_.path(), i);
      const Outcome removed = quicksave({"rm", "-f", "t"});
      const bool missed = removed.err.starts_with("error: no VM is called \"t\"") ||
                          removed.err.find("removed by another process") != std::string::npos;
      ::_exit(removed.status == 0 || missed ? 0 : 1);
    }
    children.push_back(child);
  }
  for (std::size_t i = 0; i < children.size(); ++i) {
    int status = 0;
    ::waitpid(children[i], &status, 0);
    EXPECT_EQ(status, 0) << contents(fmt::format("{}/.err{}", home_.path(), i));
  }
  EXPECT_TRUE(vms().empty());
}

// timeout(1) sends two: to its child and to its group.
TEST_F(CommandLine, TwoSignalsAtOnceEndAForegroundVmInOrder) {
  const pid_t child = begin({"run", "--kernel", kernel_});
  while (contents(home_.path() + "/.out").empty()) ::usleep(1000);
  ::kill(child, SIGTERM);
  ::kill(child, SIGHUP);  // two equal ones would be one before anybody saw them
  const Outcome ended = finish(child);
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_TRUE(vms().empty());
}

TEST_F(CommandLine, ASecondSignalFromSomebodyWhoHasWaitedKills) {
  const pid_t child = begin({"run", "--kernel", kernel_, "--append", "stubborn"});
  while (contents(home_.path() + "/.out").empty()) ::usleep(1000);
  ::kill(child, SIGTERM);
  ::usleep(1'100'000);
  ::kill(child, SIGTERM);
  EXPECT_EQ(finish(child).status, 1000 + SIGTERM);
}

TEST_F(CommandLine, DoctorWantsADirectoryForItsHome) {
  const std::string file = home_.path() + "/file";
  std::ofstream(file) << "no directory";
  ::setenv("QUICKSAVE_HOME", file.c_str(), 1);
  const json doctor = json::parse(quicksave({"doctor", "--json"}).out);
  ::setenv("QUICKSAVE_HOME", home_.path().c_str(), 1);
  EXPECT_EQ(doctor["fit"], false);
  for (const json& line : doctor["checks"]) {
    if (line["what"] != "home") continue;
    EXPECT_EQ(line["health"], "BAD");
    EXPECT_EQ(line["detail"], fmt::format("\"{}\" is not a directory", file));
  }
}

TEST_F(CommandLine, NamesWhatItDoesNotKnow) {
  const Outcome flag = quicksave({"ps", "--jsno"});
  EXPECT_EQ(flag.status, 2);
  EXPECT_NE(flag.err.find("--jsno"), std::string::npos) << flag.err;
  const Outcome verb = quicksave({"runn"});
  EXPECT_EQ(verb.status, 2);
  EXPECT_NE(verb.err.find("runn"), std::string::npos) << verb.err;
  const Outcome vm = quicksave({"inspect", "nobody"});
  EXPECT_EQ(vm.status, 1);
  EXPECT_NE(vm.err.find("nobody"), std::string::npos);
  EXPECT_EQ(quicksave({}).status, 2);
  EXPECT_EQ(quicksave({"snapshot"}).status, 2);
  EXPECT_EQ(quicksave({"restore", "x"}).status, 2);
  EXPECT_EQ(quicksave({"snapshot", "show", "t@nothing"}).status, 1);
}

TEST_F(CommandLine, HelpAndVersionGoToStdout) {
  const Outcome help = quicksave({"--help"});
  EXPECT_EQ(help.status, 0);
  for (const char* word : {"run", "restore", "snapshot", "revert", "doctor", "125"}) {
    EXPECT_NE(help.out.find(word), std::string::npos) << word;
  }
  EXPECT_NE(quicksave({"run", "--help"}).out.find("--on-enospc"), std::string::npos);
  EXPECT_NE(quicksave({"snapshot", "create", "--help"}).out.find("--no-wait"), std::string::npos);
  EXPECT_EQ(quicksave({"version"}).status, 0);
  EXPECT_EQ(quicksave({"bench", "revert", "x"}).status, 42);
}

TEST_F(CommandLine, EmptyListsAreListsInJson) {
  EXPECT_EQ(json::parse(quicksave({"ps", "--json"}).out), json::array());
  EXPECT_EQ(json::parse(quicksave({"snapshot", "list", "--json"}).out), json::array());
  const json doctor = json::parse(quicksave({"doctor", "--json"}).out);
  EXPECT_TRUE(doctor["checks"].is_array());
}

}  // namespace
}  // namespace control
