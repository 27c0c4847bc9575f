#include "vmm/control/api_server.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "vmm/base/log.h"
#include "vmm/control/api_session.h"
#include "vmm/control/json_reader.h"
#include "vmm/control/unix_listener.h"
#include "vmm/control/vm_directory.h"
#include "vmm/control/wire_format.h"

namespace control {
namespace {

using nlohmann::json;
using SessionPointer = std::shared_ptr<ApiSession>;

constexpr u64 kSweepMs = 500;

// A body's JSON; an empty body is an empty object.
Result<json> body_of(const HttpRequest& request) {
  if (request.body.empty()) return json::object();
  return parse_json("request body", request.body);
}

Result<void> expect_no_keys(const HttpRequest& request) {
  const json body = TRY(body_of(request));
  const JsonObject object = TRY(JsonObject::open(body, ""));
  return object.finish();
}

}  // namespace

struct ApiServer::Impl : std::enable_shared_from_this<ApiServer::Impl> {
  Impl(Loop& l, VmControl& v, const ApiLimits& a) : loop(l), vm(v), limits(a) {}

  Loop& loop;
  VmControl& vm;
  const ApiLimits limits;
  std::shared_ptr<UnixListener> listener;
  std::vector<SessionPointer> sessions;
  bool is_sweeping = false;

  // What is under way; empty if nothing is.
  std::string operation;
  u64 operation_number = 0;
  u64 operation_began_ms = 0;

  void add_client(base::Fd fd);
  void drop_idlest();
  void sweep();

  void serve(const SessionPointer& session, const HttpRequest& request);
  Result<std::string> call(const SessionPointer& session, const HttpRequest& request);

  Result<void> expect_idle() const;
  Result<std::string> configure(const HttpRequest& request);
  Result<std::string> set_state(const HttpRequest& request);
  Result<std::string> press_power_button(const HttpRequest& request);
  Result<std::string> revert(const HttpRequest& request);
  Result<std::string> create_snapshot(const SessionPointer& session, const HttpRequest& request);
  Result<std::string> delete_snapshot(const std::string& name, const HttpRequest& request);
  void end_operation(u64 number);
};

namespace {

// Given back by a handler that answers later.
constexpr const char* kLater = "";

// Never fails: a file name in a message may be anything but UTF-8.
std::string dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

void answer_error(ApiSession& session, const Error& error) {
  session.answer(http_status_of(error.kind()), dump(error_to_json(error)));
}

}  // namespace

// --- clients ---------------------------------------------------------------------------------

void ApiServer::Impl::add_client(base::Fd fd) {
  if (sessions.size() >= limits.clients) drop_idlest();
  const bool is_full = sessions.size() >= limits.clients;
  auto session = std::make_shared<ApiSession>(
      loop, std::move(fd), limits,
      [this](const SessionPointer& s, const HttpRequest& request) { serve(s, request); },
      [this](ApiSession& gone) {
        std::erase_if(sessions, [&](const SessionPointer& s) { return s.get() == &gone; });
      });
  if (is_full) {
    const Error error =
        make_error(ErrorKind::busy, "{} clients are being served already", limits.clients)
            .with_hint("try again");
    return session->turn_away(503, dump(error_to_json(error)));
  }
  sessions.push_back(session);
  session->start();
  if (!is_sweeping) sweep();
}

// Whoever says nothing keeps a place only as long as nobody else needs it.
void ApiServer::Impl::drop_idlest() {
  SessionPointer idlest;
  for (const SessionPointer& session : sessions) {
    if (!session->is_idle()) continue;
    if (!idlest || session->idle_since_ms() < idlest->idle_since_ms()) idlest = session;
  }
  if (idlest) idlest->close();
}

void ApiServer::Impl::sweep() {
  const u64 now = monotonic_ms();
  const std::vector<SessionPointer> all = sessions;  // giving up removes from `sessions`
  for (const SessionPointer& session : all) {
    if (session->deadline_ms() != 0 && session->deadline_ms() <= now) {
      session->give_up_on_slow_client();
    }
  }
  is_sweeping = !sessions.empty();
  if (!is_sweeping) return;
  loop.call_after_ms(kSweepMs, [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->sweep();
  });
}

// --- requests --------------------------------------------------------------------------------

void ApiServer::Impl::serve(const SessionPointer& session, const HttpRequest& request) {
  Result<std::string> answer = call(session, request);
  if (!answer) return answer_error(*session, answer.error());
  if (*answer != kLater) session->answer(200, *answer);
}

Result<std::string> ApiServer::Impl::call(const SessionPointer& session,
                                          const HttpRequest& request) {
  const auto is = [&](std::string_view method, std::string_view target) {
    return request.target == target && request.method == method;
  };
  if (is("POST", "/v1/revert")) return revert(request);
  if (is("GET", "/v1/vm")) return dump(to_json(vm.info()));
  if (is("GET", "/v1/vm/config")) return dump(to_json(vm.info())["config"]);
  if (is("PUT", "/v1/vm/config")) return configure(request);
  if (is("PUT", "/v1/vm/state")) return set_state(request);
  if (is("POST", "/v1/power-button")) return press_power_button(request);
  if (is("POST", "/v1/snapshots")) return create_snapshot(session, request);
  constexpr std::string_view kSnapshot = "/v1/snapshots/";
  if (request.method == "DELETE" && request.target.starts_with(kSnapshot)) {
    return delete_snapshot(request.target.substr(kSnapshot.size()), request);
  }
  if (is("POST", "/v1/kill")) {
    TRY(expect_no_keys(request));
    session->answer(200, "{}");  // first: the process may end before the loop comes round again
    vm.kill();
    return std::string(kLater);
  }
  constexpr std::pair<std::string_view, std::string_view> kRoutes[] = {
      {"GET", "/v1/vm"},      {"GET or PUT", "/v1/vm/config"}, {"PUT", "/v1/vm/state"},
      {"POST", "/v1/kill"},   {"POST", "/v1/power-button"},    {"POST", "/v1/snapshots"},
      {"POST", "/v1/revert"},
  };
  for (const auto& [method, target] : kRoutes) {
    if (request.target != target) continue;
    session->answer(405, dump(error_to_json(make_error(ErrorKind::usage, "{} takes {}, not {}",
                                                       target, method, request.method))));
    return std::string(kLater);
  }
  return make_error(ErrorKind::not_found, "there is no {} here", request.target)
      .with_hint(
          "/v1/vm, /v1/vm/config, /v1/vm/state, /v1/power-button, /v1/kill, /v1/snapshots, "
          "/v1/snapshots/NAME, /v1/revert");
}

Result<void> ApiServer::Impl::expect_idle() const {
  if (operation.empty()) return {};
  return make_error(ErrorKind::busy, "{} is under way, since {} ms", operation,
                    monotonic_ms() - operation_began_ms)
      .with_hint("try again when it is done; quicksave kill ends the VM in any case");
}

Result<std::string> ApiServer::Impl::revert(const HttpRequest& request) {
  TRY(expect_idle());
  const json body = TRY(body_of(request));
  const RevertRequest revert_request = TRY(revert_request_of(body));
  return revert_to_text(TRY(vm.revert(revert_request)));
}

Result<std::string> ApiServer::Impl::configure(const HttpRequest& request) {
  TRY(expect_idle());
  const json body = TRY(body_of(request));
  const MachineConfig config = TRY(config_request_of(body));
  TRY(vm.configure(config));
  return dump(config.to_json());
}

Result<std::string> ApiServer::Impl::set_state(const HttpRequest& request) {
  TRY(expect_idle());
  const json body = TRY(body_of(request));
  const VmState state = TRY(state_request_of(body));
  TRY(state == VmState::running ? vm.resume() : vm.pause());
  return fmt::format(R"({{"state":"{}"}})", name_of(state));
}

Result<std::string> ApiServer::Impl::press_power_button(const HttpRequest& request) {
  TRY(expect_idle());
  TRY(expect_no_keys(request));
  TRY(vm.press_power_button());
  return std::string("{}");
}

void ApiServer::Impl::end_operation(u64 number) {
  if (number == operation_number) operation.clear();
}

Result<std::string> ApiServer::Impl::create_snapshot(const SessionPointer& session,
                                                     const HttpRequest& request) {
  TRY(expect_idle());
  const json body = TRY(body_of(request));
  bool wait = true;
  const SnapshotRequest snapshot = TRY(snapshot_request_of(body, wait));

  operation = snapshot.name.empty() ? "snapshot create"
                                    : fmt::format("snapshot create \"{}\"", snapshot.name);
  operation_began_ms = monotonic_ms();
  const u64 number = ++operation_number;
  // The client may go away meanwhile, the server too; the snapshot is completed either way.
  const auto answer = [weak = std::weak_ptr(session)](const SnapshotResult& result, bool durable) {
    const SessionPointer client = weak.lock();
    if (!client) return;
    json text = to_json(result);
    text["durable"] = durable;
    client->answer(200, dump(text));
  };
  const auto paused_done = [weak = weak_from_this(), number, wait,
                            answer](const SnapshotResult& result) {
    if (const auto self = weak.lock()) self->end_operation(number);
    if (!wait) answer(result, false);
  };
  const auto durable = [weak = weak_from_this(), number, answer,
                        client = std::weak_ptr(session)](Result<SnapshotResult> result) {
    if (const auto self = weak.lock()) self->end_operation(number);
    if (result) return answer(*result, true);  // answers once: the session knows whether it owes
    if (const SessionPointer waiting = client.lock()) answer_error(*waiting, result.error());
  };
  vm.create_snapshot(snapshot, paused_done, durable);
  return std::string(kLater);
}

Result<std::string> ApiServer::Impl::delete_snapshot(const std::string& name,
                                                     const HttpRequest& request) {
  TRY(expect_idle());
  TRY(expect_no_keys(request));
  TRY(check_name("snapshot", name));
  TRY(vm.delete_snapshot(name));
  return std::string("{}");
}

// --- the outside -----------------------------------------------------------------------------

ApiServer::ApiServer(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<ApiServer>> ApiServer::create(Loop& loop, VmControl& vm,
                                                     const std::string& socket_path,
                                                     const ApiLimits& limits) {
  auto impl = std::make_shared<Impl>(loop, vm, limits);
  impl->listener =
      TRY(UnixListener::create(loop, socket_path, [self = impl.get()](base::Fd client) {
        self->add_client(std::move(client));
      }));
  return std::unique_ptr<ApiServer>(new ApiServer(std::move(impl)));
}

ApiServer::~ApiServer() {
  impl_->listener.reset();
  const std::vector<SessionPointer> all = std::move(impl_->sessions);
  for (const SessionPointer& session : all) session->close();
}

void ApiServer::finish() {
  constexpr int kMomentMs = 200;
  const std::vector<SessionPointer> all = impl_->sessions;
  for (const SessionPointer& session : all) {
    pollfd ready{session->fd(), POLLOUT, 0};
    if (session->has_unsent_bytes() && ::poll(&ready, 1, kMomentMs) > 0) session->send_outbox();
  }
}

}  // namespace control
