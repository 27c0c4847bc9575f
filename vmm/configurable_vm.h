// ConfigurableVm: a VM whose process and API are there before its machine.
//
//   unconfigured --configure(), as often as wanted; resume()--> running, and from then on a LiveVm
//
// A start that is refused (a kernel that is missing, a disk in use) leaves the VM unconfigured with
// the configuration it has, to be replaced and tried again.
//
// Thread: the control thread, which runs the loop.

#pragma once

#include <memory>
#include <optional>

#include "vmm/live_vm.h"

namespace vmm {

class ConfigurableVm final : public control::VmControl {
 public:
  // All outlive the VM. REQUIRES: `request` says neither boot nor restore.
  ConfigurableVm(const kvm::Kvm& kvm, control::LaunchRequest& request, control::Loop& loop)
      : kvm_(kvm), request_(request), loop_(loop) {}

  // As LiveVm's.
  void finish() {
    if (live_) live_->finish();
  }
  // A VM that never ran was killed.
  ExitStatus exit_status() const { return live_ ? live_->exit_status() : ExitStatus::killed; }

  control::VmInfo info() override;
  Result<void> configure(const control::MachineConfig& config) override;
  Result<void> pause() override;
  // Starts the machine, or lets it go on.
  Result<void> resume() override;
  Result<void> press_power_button() override;
  void kill() override;
  void create_snapshot(const control::SnapshotRequest& request,
                       std::function<void(const control::SnapshotResult&)> paused_done,
                       std::function<void(Result<control::SnapshotResult>)> durable) override;
  Result<control::RevertResult> revert(const control::RevertRequest& request) override;
  Result<void> delete_snapshot(const std::string& name) override;

 private:
  Result<void> start();
  Error not_started() const;

  const kvm::Kvm& kvm_;
  control::LaunchRequest& request_;
  control::Loop& loop_;
  std::unique_ptr<LiveVm> live_;  // from the start on
};

}  // namespace vmm
