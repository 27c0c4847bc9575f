// A VM without a machine: remembers what it was asked and answers from a script.

#pragma once

#include <string>
#include <vector>

#include "vmm/control/vm_control.h"

namespace control {

class FakeVm final : public VmControl {
 public:
  VmInfo info() override {
    VmInfo result;
    result.name = "fake";
    result.state = state;
    result.config.emplace().kernel = "/k";
    return result;
  }
  Result<void> pause() override {
    if (state != VmState::running) return make_error(ErrorKind::wrong_state, "not running");
    state = VmState::paused;
    return {};
  }
  Result<void> resume() override {
    state = VmState::running;
    return {};
  }
  Result<void> press_power_button() override {
    if (state != VmState::running) {
      return make_error(ErrorKind::wrong_state, "fake is {}, not running", name_of(state));
    }
    ++power_presses;
    if (on_power_button) on_power_button();
    return {};
  }
  void kill() override {
    killed = true;
    if (on_kill) on_kill();
  }
  void create_snapshot(const SnapshotRequest& request,
                       std::function<void(const SnapshotResult&)> paused_done,
                       std::function<void(Result<SnapshotResult>)> durable) override {
    SnapshotResult result;
    result.name = request.name.empty() ? "s1" : request.name;
    result.uuid = "u-u-i-d";
    result.pause_us = 5;
    if (hold_snapshots) {
      held_paused_done = [=] { paused_done(result); };
      held_durable = [=] { durable(result); };
      return;
    }
    if (!snapshot_error.empty()) {
      return durable(make_error(ErrorKind::no_space, "{}", snapshot_error).with_hint("make room"));
    }
    paused_done(result);
    result.total_us = 9;
    result.memory_bytes = 4096;
    durable(result);
  }
  Result<RevertResult> revert(const RevertRequest& request) override {
    reverts.push_back(request);
    if (request.snapshot == "missing") {
      return make_error(ErrorKind::not_found, "no snapshot \"missing\"").with_hint("try another");
    }
    RevertResult result;
    result.snapshot = request.snapshot.empty() ? "s1" : request.snapshot;
    result.total_us = 42;
    result.dirty_pages = 7;
    result.clusters = 3;
    result.phases_us = {{"pause", 1}, {"memory", 30}};
    return result;
  }

  Result<void> delete_snapshot(const std::string& name) override {
    if (name == "current") return make_error(ErrorKind::wrong_state, "the VM stands on it");
    deleted.push_back(name);
    return {};
  }

  VmState state = VmState::running;
  int power_presses = 0;
  bool killed = false;
  bool hold_snapshots = false;
  std::string snapshot_error;
  std::vector<RevertRequest> reverts;
  std::vector<std::string> deleted;
  std::function<void()> held_paused_done;
  std::function<void()> held_durable;
  std::function<void()> on_kill;
  std::function<void()> on_power_button;
};

}  // namespace control
