#include "vmm/control/live_vm.h"

#include <ctime>

#include "vmm/control/json_reader.h"
#include "vmm/control/output.h"

namespace control {

Result<int> with_live_vm(const std::string& vm,
                         const std::function<Result<int>(ApiClient&)>& work) {
  const Home home = TRY(Home::from_environment());
  const VmDirectory directory = TRY(find_vm_directory(home, vm));
  ApiClient client = TRY(ApiClient::connect(directory));
  Result<int> status = work(client);
  if (!status && client.transport_failed()) {
    report(status.error());
    return kExitInfrastructure;
  }
  return status;
}

Result<nlohmann::json> ask(ApiClient& client, std::string_view method, std::string_view target,
                           const nlohmann::json& body) {
  const std::string text = TRY(client.request(method, target, body.is_null() ? "" : body.dump()));
  return parse_json("the VM's answer", text);
}

Result<bool> wait_for_end(const VmDirectory& directory, u64 timeout_ms) {
  constexpr u64 kStepMs = 10;
  for (u64 waited_ms = 0;; waited_ms += kStepMs) {
    const std::optional<u32> owner = TRY(owner_of(directory));
    if (!owner) return true;
    if (waited_ms >= timeout_ms) return false;
    const timespec step{0, static_cast<long>(kStepMs) * 1'000'000};
    ::nanosleep(&step, nullptr);
  }
}

}  // namespace control
