// The JSON that the API server and its clients exchange, one function a shape. Scripts see these
// keys: none is ever renamed.

#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>

#include "vmm/base/result.h"
#include "vmm/control/vm_control.h"

namespace control {

nlohmann::json to_json(const VmInfo& info);
nlohmann::json to_json(const SnapshotResult& result);
nlohmann::json error_to_json(const Error& error);

// Written without a tree of nodes in between: this is on the path whose time is a product figure.
std::string revert_to_text(const RevertResult& result);

// Strict: an unknown key is an error.
Result<SnapshotRequest> snapshot_request_of(const nlohmann::json& body, bool& wait);
Result<RevertRequest> revert_request_of(const nlohmann::json& body);
// As a manifest's, but "append" has the default of `run`.
Result<MachineConfig> config_request_of(const nlohmann::json& body);
// {"state": "running" | "paused"}
Result<VmState> state_request_of(const nlohmann::json& body);

int http_status_of(ErrorKind kind);
std::string_view name_of(ErrorKind kind);

// The Error that a client makes of an answer that is not 2xx.
Error error_of_answer(int status, std::string_view body);

}  // namespace control
