// What the verbs on live VMs share: finding the VM, asking it, telling the two kinds of failure
// apart, waiting for its end.

#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "vmm/base/result.h"
#include "vmm/control/api_client.h"
#include "vmm/control/vm_directory.h"

namespace control {

// Runs `work` with a connection to `vm`. A refusal comes back as its Error; a VM that does not
// answer is reported here and becomes exit status 125.
Result<int> with_live_vm(const std::string& vm, const std::function<Result<int>(ApiClient&)>& work);

// One request; the answer as JSON.
Result<nlohmann::json> ask(ApiClient& client, std::string_view method, std::string_view target,
                           const nlohmann::json& body = nullptr);

// Whether the VM's process let go of its lock within the time.
Result<bool> wait_for_end(const VmDirectory& directory, u64 timeout_ms);

}  // namespace control
