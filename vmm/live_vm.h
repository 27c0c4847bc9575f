// LiveVm: one VM's life in its process: boots or restores the machine, answers what is asked of it,
// and reacts to what the guest does.
//
//   created --start()--> running <-> paused
//                           |  a crash, a failed revert
//                           v
//                        halted --revert--> running
//
// A crashed guest stays halted, so that it can be looked at and reverted; powering off ends the VM.
//
// Thread: the control thread, which runs the loop.

#pragma once

#include <memory>
#include <string>

#include "vmm/control/console_hub.h"
#include "vmm/control/launcher.h"
#include "vmm/control/vm_control.h"
#include "vmm/machine.h"
#include "vmm/persistent_disks.h"
#include "vmm/reverter.h"
#include "vmm/snapshotter.h"
#include "vmm/stopwatch.h"

namespace vmm {

// How the VM ended, as exit status.
enum class ExitStatus : int { powered_off = 0, crashed = 1, vmm_failed = 125, killed = 137 };

class LiveVm final : public control::VmControl,
                     private MachineObserver,
                     private devices::SerialSink {
 public:
  // Builds the machine: from a kernel or from a snapshot, as `request` says. `kvm` and `loop`
  // outlive the VM.
  static Result<std::unique_ptr<LiveVm>> create(const kvm::Kvm& kvm,
                                                const control::LaunchRequest& request,
                                                control::Loop& loop);
  ~LiveVm() override;

  // The vCPUs go. Once.
  void start();
  // The loop has ended: the guest stands still; waits for a snapshot that is being written and tells
  // who asked for it; then persistent disks are flushed and closed.
  void finish();
  ExitStatus exit_status() const { return exit_status_; }

  control::VmInfo info() override;
  Result<void> pause() override;
  Result<void> resume() override;
  Result<void> press_power_button() override;
  void kill() override;
  void create_snapshot(const control::SnapshotRequest& request,
                       std::function<void(const control::SnapshotResult&)> paused_done,
                       std::function<void(Result<control::SnapshotResult>)> durable) override;
  Result<control::RevertResult> revert(const control::RevertRequest& request) override;
  Result<void> delete_snapshot(const std::string& name) override;

 private:
  LiveVm(const kvm::Kvm& kvm, const control::LaunchRequest& request, control::Loop& loop);
  Result<void> boot(const control::MachineConfig& config);
  blockdev::DiskOptions disk_options() const;
  std::string first_head_path(std::size_t slot) const;
  Result<std::unique_ptr<blockdev::Disk>> open_boot_disk(const blockdev::DiskSpec& spec) const;
  Result<std::unique_ptr<blockdev::Disk>> open_snapshot_disk(const blockdev::DiskSpec& spec,
                                                             const snapshot::Disk& described) const;
  Result<void> restore(const control::LaunchRequest& request);
  Result<void> restore_object(const control::LaunchRequest& request,
                              std::shared_ptr<const snapshot::SnapshotObject> object);
  Result<void> build(const control::MachineConfig& config, Machine::Parts parts,
                     snapshot::RamOrigin ram_origin, std::vector<DiskMark> disks_at_start);
  Result<void> reboot();
  Result<snapshot::SnapshotNode*> find_snapshot(const std::string& name);
  void halt(std::string reason, ExitStatus status);
  void end(ExitStatus status);
  Error wrong_state(std::string_view wanted) const;

  void guest_powered_off() override;
  void guest_asked_for_reboot() override;
  void guest_crashed(std::string reason) override;
  void vmm_failed(std::string reason) override;
  void disk_out_of_space(std::string disk) override;
  void write(u8 byte) override { console_->write(byte); }
  void input_room() override { console_->input_room(); }

  // Runs `react` on the control thread, unless the machine was reverted since: what an abandoned
  // timeline asked for must not happen in the new one.
  void react_later(std::function<void()> react);

  const kvm::Kvm& kvm_;
  control::Loop& loop_;
  const std::string name_;
  const control::Home home_;
  const control::ConsoleTarget console_target_;
  std::unique_ptr<control::ConsoleHub> console_;
  std::optional<snapshot::SnapshotStore> store_;
  std::unique_ptr<Machine> machine_;
  std::vector<DiskMark> disks_at_start_;
  std::unique_ptr<PersistentDisks> persistent_;
  std::unique_ptr<snapshot::SnapshotTree> tree_;
  LayerHandover handover_;
  std::unique_ptr<Reverter> reverter_;
  std::unique_ptr<Snapshotter> snapshotter_;
  control::VmState state_ = control::VmState::created;
  std::string paused_because_;
  u64 revert_count_ = 0;
  std::atomic<u64> timeline_{0};  // counts reverts and reboots
  ExitStatus exit_status_ = ExitStatus::powered_off;
  Stopwatch since_start_;
};

}  // namespace vmm
