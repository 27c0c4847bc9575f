#include "vmm/configurable_vm.h"

namespace vmm {

control::VmInfo ConfigurableVm::info() {
  if (live_) return live_->info();
  control::VmInfo info;
  info.name = request_.directory.name;
  info.state = control::VmState::unconfigured;
  info.config = request_.boot;
  return info;
}

Result<void> ConfigurableVm::configure(const control::MachineConfig& config) {
  if (live_) return live_->configure(config);
  TRY(control::write_config(request_.directory, config));
  request_.boot = config;
  return {};
}

Result<void> ConfigurableVm::pause() {
  if (!live_) return not_started();
  return live_->pause();
}

Result<void> ConfigurableVm::resume() {
  if (live_) return live_->resume();
  if (!request_.boot) return not_started();
  return start();
}

Result<void> ConfigurableVm::start() {
  std::unique_ptr<LiveVm> vm = TRY(LiveVm::create(kvm_, request_, loop_));
  vm->start();
  live_ = std::move(vm);
  return {};
}

Result<void> ConfigurableVm::press_power_button() {
  if (!live_) return not_started();
  return live_->press_power_button();
}

void ConfigurableVm::kill() {
  if (live_) return live_->kill();
  loop_.stop();
}

void ConfigurableVm::create_snapshot(
    const control::SnapshotRequest& request,
    std::function<void(const control::SnapshotResult&)> paused_done,
    std::function<void(Result<control::SnapshotResult>)> durable) {
  if (!live_) return durable(not_started());
  live_->create_snapshot(request, std::move(paused_done), std::move(durable));
}

Result<control::RevertResult> ConfigurableVm::revert(const control::RevertRequest& request) {
  if (!live_) return not_started();
  return live_->revert(request);
}

Result<void> ConfigurableVm::delete_snapshot(const std::string& name) {
  if (!live_) return not_started();
  return live_->delete_snapshot(name);
}

Error ConfigurableVm::not_started() const {
  const char* const configure = request_.boot ? "" : R"(PUT /v1/vm/config {"kernel":...}, then )";
  return make_error(ErrorKind::wrong_state, "{} is unconfigured, not running",
                    request_.directory.name)
      .with_hint(fmt::format(R"({}PUT /v1/vm/state {{"state":"running"}})", configure));
}

}  // namespace vmm
