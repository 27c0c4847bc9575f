#include <signal.h>

#include <nlohmann/json.hpp>

#include "snapshot/store.h"
#include "vmm/control/live_vm.h"
#include "vmm/control/size_text.h"
#include "vmm/control/verbs.h"

namespace control {
namespace {

using nlohmann::json;

// A VM that hangs must not hang `ps`.
constexpr u64 kGlanceMs = 1000;
// After a kill, what is left is to write out a snapshot, flush disks, unmap memory and close files.
constexpr u64 kKillWaitMs = 10'000;
constexpr u64 kWriteWaitMs = 60'000;

std::string human_uptime(u64 ms) {
  const u64 seconds = ms / 1000;
  if (seconds < 60) return fmt::format("{}s", seconds);
  if (seconds < 3600) return fmt::format("{}m{:02}s", seconds / 60, seconds % 60);
  return fmt::format("{}h{:02}m", seconds / 3600, seconds / 60 % 60);
}

// What can be said of a VM whether it runs or not. Never fails: a damaged VM is listed too.
json describe(const VmDirectory& directory) {
  json vm = {{"name", directory.name}, {"state", "stopped"},   {"pid", nullptr},
             {"current_snapshot", ""}, {"paused_because", ""}, {"uptime_ms", 0},
             {"reverts", 0},           {"config", nullptr}};
  if (const Result<MachineConfig> config = read_config(directory)) vm["config"] = config->to_json();
  const Result<std::optional<u32>> owner = owner_of(directory);
  if (!owner || !*owner) return vm;
  vm["pid"] = **owner;
  if (is_ending(directory)) {
    vm["state"] = "ending";
    return vm;
  }
  vm["state"] = "starting";
  Result<ApiClient> client = ApiClient::connect(directory);
  if (!client) return vm;
  client->set_timeout_ms(kGlanceMs);
  const Result<json> info = ask(*client, "GET", "/v1/vm");
  if (info && info->is_object()) return *info;
  vm["state"] = "unresponsive";
  return vm;
}

std::vector<std::string> row_of(const json& vm) {
  const json& config = vm["config"];
  const bool is_live = !vm["pid"].is_null();
  const std::string snapshot = vm.value("current_snapshot", "");
  return {vm.value("name", ""),
          vm.value("state", ""),
          is_live ? std::to_string(vm["pid"].get<u64>()) : "-",
          config.is_object() ? std::to_string(config.value("cpus", 0)) : "-",
          config.is_object() ? format_size(config.value("memory_bytes", u64{0})) : "-",
          snapshot.empty() ? "-" : snapshot,
          is_live ? human_uptime(vm.value("uptime_ms", u64{0})) : "-",
          vm.value("paused_because", "")};
}

// What is lost with a VM that nobody meant to lose.
Result<void> check_nothing_is_lost(const snapshot::SnapshotStore& store, const std::string& vm) {
  const std::vector<snapshot::NewestDisk> disks = TRY(store.newest_disks(vm));
  if (disks.empty()) return {};
  return make_error(ErrorKind::wrong_state,
                    "VM \"{}\" has the newest state of its disk {}, in \"{}\"", vm,
                    disks.front().name, disks.front().file)
      .with_hint(
          fmt::format("quicksave inspect {0} shows how to go on from it; quicksave rm --force "
                      "{0} drops it",
                      vm));
}

// Whether it has ended. What it still writes takes as long as it takes, within reason.
Result<bool> wait_for_last_writes(const VmDirectory& directory) {
  for (u64 waited_ms = 0; waited_ms < kWriteWaitMs && is_ending(directory);) {
    constexpr u64 kStepMs = 100;
    if (TRY(wait_for_end(directory, kStepMs))) return true;
    waited_ms += kStepMs;
  }
  return !TRY(owner_of(directory));
}

// Done too if the VM has ended by itself meanwhile.
Result<int> end_now(const VmDirectory& directory) {
  if (!is_ending(directory)) {
    if (Result<ApiClient> client = ApiClient::connect(directory)) {
      client->set_timeout_ms(kGlanceMs);
      const Result<std::string> asked = client->request("POST", "/v1/kill");
      if (asked && TRY(wait_for_end(directory, kKillWaitMs))) return kExitDone;
    }
  }
  if (TRY(wait_for_last_writes(directory))) return kExitDone;
  if (is_ending(directory)) {
    warn(fmt::format("VM \"{}\" is still writing: killed, and what it had not written is lost",
                     directory.name));
  }
  // It does not listen. The lock is held, so the pid is that of the VM.
  const std::optional<u32> still = TRY(owner_of(directory));
  if (still && *still != 0) ::kill(static_cast<pid_t>(*still), SIGKILL);
  if (TRY(wait_for_end(directory, kKillWaitMs))) return kExitDone;
  report(make_error(ErrorKind::failed, "process {} of VM \"{}\" does not end", still.value_or(0),
                    directory.name));
  return kExitInfrastructure;
}

Result<int> remove_one(const Home& home, const std::string& vm, Force force) {
  VmDirectory directory = TRY(find_vm_directory(home, vm));
  const std::optional<u32> owner = TRY(owner_of(directory));
  if (owner && force == Force::yes) {
    const int status = TRY(end_now(directory));
    if (status != kExitDone) return status;
  }
  TRY(lock_vm_directory(directory));
  const auto store = TRY(snapshot::SnapshotStore::open(home.snapshots(), home.vms()));
  if (force == Force::no) TRY(check_nothing_is_lost(store, vm));
  TRY(store.check_may_remove(vm));
  TRY(store.remove_names(vm));
  TRY(remove_vm_directory(directory));
  return kExitDone;
}

}  // namespace

Result<int> list_vms(Output output) {
  const Home home = TRY(Home::from_environment());
  json vms = json::array();
  for (const std::string& name : TRY(list_vm_names(home))) {
    const Result<VmDirectory> directory = find_vm_directory(home, name);
    if (directory) vms.push_back(describe(*directory));  // else: removed meanwhile
  }
  if (output == Output::json) {
    put_json(vms);
    return kExitDone;
  }
  std::vector<std::vector<std::string>> rows = {
      {"NAME", "STATE", "PID", "CPUS", "MEMORY", "SNAPSHOT", "UPTIME", ""}};
  for (const json& vm : vms) rows.push_back(row_of(vm));
  put(table(rows));
  return kExitDone;
}

Result<int> inspect(const std::string& vm) {
  const Home home = TRY(Home::from_environment());
  const VmDirectory directory = TRY(find_vm_directory(home, vm));
  json description = describe(directory);
  description["directory"] = directory.path();
  description["api_socket"] = directory.api_socket();
  description["console_socket"] = directory.console_socket();
  const auto store = TRY(snapshot::SnapshotStore::open(home.snapshots(), home.vms()));
  description["newest_disks"] = json::array();
  for (const snapshot::NewestDisk& disk : TRY(store.newest_disks(vm))) {
    description["newest_disks"].push_back(
        {{"name", disk.name}, {"file", disk.file}, {"disk_argument", disk.argument}});
  }
  put(description.dump(2, ' ', false, json::error_handler_t::replace) + "\n");
  return kExitDone;
}

Result<int> set_state(const std::string& vm, VmState state) {
  return with_live_vm(vm, [&](ApiClient& client) -> Result<int> {
    TRY(ask(client, "PUT", "/v1/vm/state", {{"state", name_of(state)}}));
    return kExitDone;
  });
}

Result<int> stop(const std::string& vm, u64 timeout_s) {
  const Home home = TRY(Home::from_environment());
  const VmDirectory directory = TRY(find_vm_directory(home, vm));
  const u64 timeout_ms = timeout_s * 1000;
  const bool runs = TRY(owner_of(directory)).has_value();
  Result<ApiClient> client = ApiClient::connect(directory);
  // One that is starting listens soon.
  for (u64 waited_ms = 0; !client && runs && waited_ms < timeout_ms;) {
    constexpr u64 kStepMs = 50;
    if (TRY(wait_for_end(directory, kStepMs))) return kExitDone;
    waited_ms += kStepMs;
    client = ApiClient::connect(directory);
  }
  if (is_ending(directory) && TRY(wait_for_last_writes(directory))) return kExitDone;
  if (!client) return client.error();
  client->set_timeout_ms(kGlanceMs);
  const Result<std::string> pressed = client->request("POST", "/v1/power-button");
  if (!pressed && !client->transport_failed()) {
    if (pressed.error().kind() != ErrorKind::wrong_state) return pressed.error();
    // It is paused, halted or unconfigured. To resume it would be wrong: it may be paused because
    // the host has no room.
    warn(fmt::format("{}: it cannot answer the power button; killed", pressed.error().message()));
    return end_now(directory);
  }
  // One that did not answer has ended meanwhile, or hangs.
  if (TRY(wait_for_end(directory, timeout_ms))) return kExitDone;
  if (is_ending(directory)) return end_now(directory);
  warn(fmt::format("VM \"{}\" did not power off within {} s of the power button; killed", vm,
                   timeout_s));
  return end_now(directory);
}

Result<int> kill(const std::string& vm) {
  const Home home = TRY(Home::from_environment());
  const VmDirectory directory = TRY(find_vm_directory(home, vm));
  const bool runs = TRY(owner_of(directory)).has_value();
  if (!runs) TRY(ApiClient::connect(directory));  // for its message
  return end_now(directory);
}

Result<int> remove(const std::vector<std::string>& vms, Force force) {
  const Home home = TRY(Home::from_environment());
  int worst = kExitDone;
  for (const std::string& vm : vms) {
    const Result<int> status = remove_one(home, vm, force);
    worst = std::max(worst, status ? *status : report(status.error()));
  }
  return worst;
}

}  // namespace control
