#include "vmm/bench/quicksave_vm.h"

#include <ctime>

#include "vmm/control/json_reader.h"
#include "vmm/control/unix_socket.h"

#include <nlohmann/json.hpp>

namespace bench {

control::VmDirectory vm_directory(const Workspace& workspace, const std::string& name) {
  control::VmDirectory directory;
  directory.home = {.state = workspace.path(), .runtime = workspace.path() + "/run"};
  directory.name = name;
  return directory;
}

// The API's socket is the last thing a VM makes before its guest runs.
Result<control::ApiClient> connect_to(const control::VmDirectory& directory, const Child& child) {
  constexpr int kStepMs = 2;
  for (int waited_ms = 0;; waited_ms += kStepMs) {
    Result<control::ApiClient> client = control::ApiClient::connect(directory);
    if (client) return client;
    if (waited_ms >= kPatienceMs / 6) {
      return std::move(client.error()).with_hint(child.errors());
    }
    const timespec step{0, long{kStepMs} * 1'000'000};
    ::nanosleep(&step, nullptr);
  }
}

Result<std::unique_ptr<QuicksaveVm>> QuicksaveVm::start(const Workspace& workspace,
                                                        const std::string& name,
                                                        const BenchVmSpec& spec) {
  Child child =
      TRY(Child::start({kThisProgram, "run", "--name", name, "--kernel",
                        workspace.dirty_pages_guest(), "-m", fmt::format("{}M", spec.memory_mib)},
                       workspace.path(), ChildOutput::none, workspace.file("errors")));
  const control::VmDirectory directory = vm_directory(workspace, name);
  control::ApiClient api = TRY(connect_to(directory, child));
  api.set_timeout_ms(kPatienceMs);
  GuestLine guest(TRY(control::connect_unix(directory.console_socket())));
  TRY(guest.begin(spec.mapped_pages));
  auto vm = std::unique_ptr<QuicksaveVm>(
      new QuicksaveVm(std::move(child), std::move(api), std::move(guest)));
  TRY(vm->snapshot());
  return vm;
}

Result<void> QuicksaveVm::snapshot() {
  TRY(guest_.let_speak());
  TRY(api_.request("POST", "/v1/snapshots", fmt::format(R"({{"name":"{}"}})", kSnapshotName)));
  return {};
}

Result<RevertTime> QuicksaveVm::revert() {
  const std::string body = fmt::format(R"({{"snapshot":"{}"}})", kSnapshotName);
  const Clock::time_point asked = Clock::now();
  TRY(api_.send_request("POST", "/v1/revert", body));
  const Result<void> heard = guest_.hear();
  const Clock::time_point spoke = Clock::now();
  const std::string text = TRY(api_.receive());
  TRY(heard);
  const nlohmann::json answer = TRY(control::parse_json("the VM's answer", text));
  return RevertTime{.client_us = us_between(asked, spoke), .own_us = answer.value("total_us", 0.0)};
}

Result<void> QuicksaveVm::pause() {
  TRY(api_.request("PUT", "/v1/vm/state", R"({"state":"paused"})"));
  return {};
}

Result<void> QuicksaveVm::resume() {
  TRY(api_.request("PUT", "/v1/vm/state", R"({"state":"running"})"));
  return {};
}

}  // namespace bench
