// `run --unconfigured`: the process and its API are there before the machine, which is configured over
// the API and started by it.

#include <gtest/gtest.h>

#include <filesystem>

#include "tests/native/support/vm_process.h"
#include "vmm/control/api_client.h"
#include "vmm/control/vm_directory.h"

namespace native {
namespace {

using nlohmann::json;

class Unconfigured : public NativeTest {
 protected:
  VmHome home_;
  VmProcess vm_{home_, "t"};

  void start() {
    CommandResult result = home_.quicksave({"run", "--name", "t", "--unconfigured", "-d"});
    ASSERT_EQ(result.status, 0) << result.err;
    ASSERT_EQ(result.out, "t\n");
  }
  Result<std::string> request(const std::string& method, const std::string& target,
                              const json& body = json::object()) {
    control::VmDirectory directory;
    directory.home = {.state = home_.path(), .runtime = home_.path() + "/run"};
    directory.name = "t";
    control::ApiClient client = TRY(control::ApiClient::connect(directory));
    return client.request(method, target, method == "GET" ? "" : body.dump());
  }
  json get(const std::string& target) {
    Result<std::string> answer = request("GET", target);
    EXPECT_TRUE(answer) << answer.error().message();
    return answer ? json::parse(*answer) : json();
  }
  void expect_refused(const std::string& method, const std::string& target, const json& body,
                      ErrorKind kind, const std::string& named) {
    Result<std::string> answer = request(method, target, body);
    ASSERT_FALSE(answer) << target << " answered " << *answer;
    EXPECT_EQ(answer.error().kind(), kind) << answer.error().message();
    EXPECT_NE(answer.error().message().find(named), std::string::npos) << answer.error().message();
    if (kind == ErrorKind::wrong_state) {
      EXPECT_NE(answer.error().hint(), "");
    }
  }
  json config() { return {{"kernel", guest_path("workload")}, {"memory_bytes", 64u << 20}}; }
};

TEST_F(Unconfigured, IsConfiguredAndStartedOverTheApi) {
  start();
  EXPECT_EQ(home_.state_of("t"), "unconfigured");
  EXPECT_EQ(get("/v1/vm/config"), json());
  ASSERT_TRUE(request("PUT", "/v1/vm/config", {{"kernel", "/first/try"}}));
  make_disk(home_.file("d"), 1 << 20);
  json wanted = config();
  wanted["disks"] = {home_.file("d") + ",format=raw"};
  wanted["cpus"] = 2;
  ASSERT_TRUE(request("PUT", "/v1/vm/config", wanted));
  const json set = get("/v1/vm/config");
  EXPECT_EQ(set["kernel"], guest_path("workload"));
  EXPECT_EQ(set["cpus"], 2);
  EXPECT_EQ(set["append"], "console=ttyS0 panic=-1");
  EXPECT_EQ(home_.state_of("t"), "unconfigured");

  ASSERT_TRUE(request("PUT", "/v1/vm/state", {{"state", "running"}}));
  EXPECT_EQ(home_.state_of("t"), "running");
  ASSERT_TRUE(vm_.wait_for("READY"));
  vm_.ask("nonce 4\ndisk-write 0 0 8 1");
  vm_.snapshot("clean");
  vm_.ask("nonce 5");
  vm_.revert("clean");
  EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 4\n", 0), 0u);
  expect_refused("PUT", "/v1/vm/config", config(), ErrorKind::wrong_state, "t is running");
  VmProcess other(home_, "o");
  other.start_from("t@clean");
  EXPECT_EQ(other.ask("disk-check 0 0 8 1"), "MATCH\n");
}

TEST_F(Unconfigured, EverythingElseIsRefusedWithTheStateAndTheWayOut) {
  start();
  const std::string named = "t is unconfigured, not running";
  expect_refused("PUT", "/v1/vm/state", {{"state", "running"}}, ErrorKind::wrong_state, named);
  expect_refused("PUT", "/v1/vm/state", {{"state", "paused"}}, ErrorKind::wrong_state, named);
  expect_refused("POST", "/v1/power-button", json::object(), ErrorKind::wrong_state, named);
  expect_refused("POST", "/v1/snapshots", {{"name", "s"}}, ErrorKind::wrong_state, named);
  expect_refused("POST", "/v1/revert", {{"snapshot", "s"}}, ErrorKind::wrong_state, named);
  CommandResult created = home_.quicksave({"snapshot", "create", "t", "s"});
  EXPECT_EQ(created.status, 1);
  EXPECT_NE(created.err.find("hint: PUT /v1/vm/config"), std::string::npos) << created.err;
  EXPECT_EQ(home_.state_of("t"), "unconfigured");
}

TEST_F(Unconfigured, WhatIsWrongInAConfigurationIsNamedWithItsPath) {
  start();
  const auto expect_named = [&](const char* key, const json& value, const std::string& named) {
    json wrong = config();
    wrong[key] = value;
    expect_refused("PUT", "/v1/vm/config", wrong, ErrorKind::usage, named);
  };
  expect_named("colour", "blue", "config.colour");
  expect_named("cpus", 0, "config.cpus");
  expect_named("cpus", "2", "config.cpus");
  expect_named("memory_bytes", 12345, "config.memory_bytes");
  expect_named("disks", {"/d,format=raw,colour=blue"}, "colour");
  expect_named("kernel", "not/absolute", "not/absolute");
  expect_refused("PUT", "/v1/vm/config", json::object(), ErrorKind::usage, "config.kernel");
  EXPECT_EQ(get("/v1/vm/config"), json());
}

TEST_F(Unconfigured, AStartThatIsRefusedCanBeTriedAgain) {
  start();
  json missing = config();
  missing["kernel"] = "/nonexistent/vmlinuz";
  ASSERT_TRUE(request("PUT", "/v1/vm/config", missing));
  expect_refused("PUT", "/v1/vm/state", {{"state", "running"}}, ErrorKind::not_found,
                 "/nonexistent/vmlinuz");
  EXPECT_EQ(home_.state_of("t"), "unconfigured");
  ASSERT_TRUE(request("PUT", "/v1/vm/config", config()));
  ASSERT_TRUE(request("PUT", "/v1/vm/state", {{"state", "running"}}));
  ASSERT_TRUE(vm_.wait_for("READY"));
  EXPECT_EQ(vm_.ask("echo here"), "ECHO here\n");
}

TEST_F(Unconfigured, IsKilledAndRemovedLikeAnyOther) {
  start();
  EXPECT_EQ(home_.quicksave({"rm", "t"}).status, 1);
  EXPECT_EQ(home_.quicksave({"kill", "t"}).status, 0);
  EXPECT_EQ(home_.state_of("t"), "stopped");
  EXPECT_EQ(home_.quicksave({"rm", "t"}).status, 0);
  start();
  EXPECT_EQ(home_.quicksave({"rm", "-f", "t"}).status, 0);
  EXPECT_FALSE(std::filesystem::exists(home_.path() + "/vms/t"));
  EXPECT_FALSE(std::filesystem::exists(home_.path() + "/run/t"));
}

TEST_F(Unconfigured, StopEndsIt) {
  start();
  CommandResult stopped = home_.quicksave({"stop", "t"});
  EXPECT_EQ(stopped.status, 0);
  EXPECT_NE(stopped.err.find("t is unconfigured, not running"), std::string::npos) << stopped.err;
  EXPECT_EQ(home_.state_of("t"), "stopped");
}

TEST_F(Unconfigured, OnTheCommandLineItExcludesWhatTheApiWillSay) {
  CommandResult both =
      home_.quicksave({"run", "--unconfigured", "--kernel", guest_path("workload")});
  EXPECT_EQ(both.status, 2);
  EXPECT_NE(both.err.find("--unconfigured"), std::string::npos) << both.err;
  CommandResult neither = home_.quicksave({"run"});
  EXPECT_EQ(neither.status, 2);
  EXPECT_NE(neither.err.find("--kernel is required"), std::string::npos) << neither.err;
}

}  // namespace
}  // namespace native
