#include "vmm/control/wire_format.h"

#include <unistd.h>

#include <iterator>
#include <nlohmann/json.hpp>

#include "vmm/control/json_reader.h"
#include "vmm/control/verbs.h"
#include "vmm/control/vm_directory.h"

namespace control {
namespace {

using nlohmann::json;

constexpr u64 kMaximumDescriptionBytes = 4096;

constexpr std::pair<ErrorKind, std::string_view> kKindNames[] = {
    {ErrorKind::failed, "failed"},       {ErrorKind::usage, "usage"},
    {ErrorKind::not_found, "not_found"}, {ErrorKind::exists, "exists"},
    {ErrorKind::busy, "busy"},           {ErrorKind::denied, "denied"},
    {ErrorKind::corrupt, "corrupt"},     {ErrorKind::unsupported, "unsupported"},
    {ErrorKind::no_space, "no_space"},   {ErrorKind::wrong_state, "wrong_state"},
};

}  // namespace

json to_json(const VmInfo& info) {
  return {{"name", info.name},
          {"state", name_of(info.state)},
          {"pid", ::getpid()},
          {"paused_because", info.paused_because},
          {"current_snapshot", info.current_snapshot},
          {"uptime_ms", info.uptime_ms},
          {"reverts", info.revert_count},
          {"config", info.config ? info.config->to_json() : json()}};
}

json to_json(const SnapshotResult& result) {
  return {{"name", result.name},
          {"uuid", result.uuid},
          {"pause_us", result.pause_us},
          {"total_us", result.total_us},
          {"memory_bytes", result.memory_bytes},
          {"disk_bytes", result.disk_bytes}};
}

json error_to_json(const Error& error) {
  return {
      {"error",
       {{"kind", name_of(error.kind())}, {"message", error.message()}, {"hint", error.hint()}}}};
}

std::string revert_to_text(const RevertResult& result) {
  // Names of snapshots and phases need no escapes: check_name() and our own constants.
  fmt::memory_buffer text;
  fmt::format_to(std::back_inserter(text),
                 R"({{"snapshot":"{}","total_us":{},"dirty_pages":{},"clusters":{},"phases_us":{{)",
                 result.snapshot, result.total_us, result.dirty_pages, result.clusters);
  const char* separator = "";
  for (const auto& [phase, us] : result.phases_us) {
    fmt::format_to(std::back_inserter(text), R"({}"{}":{})", separator, phase, us);
    separator = ",";
  }
  fmt::format_to(std::back_inserter(text), "}}}}");
  return {text.data(), text.size()};
}

Result<SnapshotRequest> snapshot_request_of(const json& body, bool& wait) {
  JsonObject object = TRY(JsonObject::open(body, ""));
  SnapshotRequest request;
  request.name = TRY(object.optional_string("name")).value_or("");
  if (!request.name.empty()) TRY(check_name("snapshot", request.name));
  request.description = TRY(object.optional_string("description")).value_or("");
  if (request.description.size() > kMaximumDescriptionBytes) {
    return make_error(ErrorKind::usage, "\"description\" has {} bytes, more than {}",
                      request.description.size(), kMaximumDescriptionBytes);
  }
  wait = TRY(object.boolean_or("wait", true));
  TRY(object.finish());
  return request;
}

Result<RevertRequest> revert_request_of(const json& body) {
  JsonObject object = TRY(JsonObject::open(body, ""));
  RevertRequest request;
  request.snapshot = TRY(object.optional_string("snapshot")).value_or("");
  if (!request.snapshot.empty()) TRY(check_name("snapshot", request.snapshot));
  const std::optional<std::string> clock = TRY(object.optional_string("clock"));
  if (clock) request.clock = TRY(parse_clock_policy(*clock));
  request.verify = TRY(object.boolean_or("verify", false)) ? Verify::yes : Verify::no;
  TRY(object.finish());
  return request;
}

Result<MachineConfig> config_request_of(const json& body) {
  MachineConfig config = TRY(MachineConfig::from_json(body));
  if (!body.contains("append")) config.append = kernel_command_line("");
  return config;
}

Result<VmState> state_request_of(const json& body) {
  JsonObject object = TRY(JsonObject::open(body, ""));
  const std::string state = TRY(object.string("state"));
  TRY(object.finish());
  if (state == "running") return VmState::running;
  if (state == "paused") return VmState::paused;
  return make_error(ErrorKind::usage, "\"state\" is \"{}\", not running or paused", state);
}

std::string_view name_of(ErrorKind kind) {
  for (const auto& [known, name] : kKindNames) {
    if (known == kind) return name;
  }
  return "failed";
}

int http_status_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::usage: return 400;
    case ErrorKind::denied: return 403;
    case ErrorKind::not_found: return 404;
    case ErrorKind::exists:
    case ErrorKind::busy:
    case ErrorKind::wrong_state: return 409;
    case ErrorKind::corrupt: return 422;
    case ErrorKind::unsupported: return 501;
    case ErrorKind::no_space: return 507;
    case ErrorKind::failed: return 500;
  }
  return 500;
}

Error error_of_answer(int status, std::string_view body) {
  const json answer = json::parse(body, nullptr, false);
  const auto text = [&](const char* key) -> std::string {
    if (!answer.is_object() || !answer.contains("error") || !answer["error"].is_object()) return "";
    const auto found = answer["error"].find(key);
    if (found == answer["error"].end() || !found->is_string()) return "";
    return found->get<std::string>();
  };
  if (text("message").empty()) {
    return make_error(ErrorKind::failed, "the VM answered with status {}", status);
  }
  ErrorKind kind = ErrorKind::failed;
  for (const auto& [known, name] : kKindNames) {
    if (name == text("kind")) kind = known;
  }
  return Error(kind, text("message")).with_hint(text("hint"));
}

}  // namespace control
