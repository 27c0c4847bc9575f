// VmControl: what can be asked of a live VM. The machine implements it, the API server calls it;
// the results are the JSON objects that scripts see.
//
// Thread: the control thread only. Nothing here blocks for longer than a snapshot takes to make room
// for its copies and to take them, or a revert to pause the guest; what takes longer calls back.

#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/base/types.h"
#include "vmm/control/machine_config.h"

namespace control {

enum class VmState : u8 { unconfigured, created, running, paused, halted };
std::string_view name_of(VmState state);

struct VmInfo {
  std::string name;
  VmState state = VmState::created;
  std::string paused_because;    // empty unless the machine paused itself: "no space left ..."
  std::string current_snapshot;  // the one the running state descends from; empty if none
  u64 uptime_ms = 0;
  u64 revert_count = 0;
  std::optional<MachineConfig> config;  // nothing until a VM that is unconfigured has got one
};

struct SnapshotRequest {
  std::string name;  // empty: "s1", "s2", ...
  std::string description;
};

struct SnapshotResult {
  std::string name;
  std::string uuid;
  u64 pause_us = 0;      // the guest stood still
  u64 total_us = 0;      // until durable
  u64 memory_bytes = 0;  // stored: allocated blocks of the memory file
  u64 disk_bytes = 0;    // the same of its disk files
};

enum class Verify : u8 { no, yes };

struct RevertRequest {
  std::string snapshot;  // empty: the current one
  ClockPolicy clock = ClockPolicy::realtime;
  Verify verify = Verify::no;  // compare all of memory and state, not disks; slow
};

struct RevertResult {
  std::string snapshot;
  u64 total_us = 0;
  u64 dirty_pages = 0;
  u64 clusters = 0;                                    // 4 KiB blocks of disk dropped, all disks
  std::vector<std::pair<std::string, u64>> phases_us;  // in order of execution
};

class VmControl {
 public:
  virtual ~VmControl() = default;

  virtual VmInfo info() = 0;
  // What the machine will be; refused once it has started.
  virtual Result<void> configure(const MachineConfig& config);
  virtual Result<void> pause() = 0;
  virtual Result<void> resume() = 0;
  // ACPI power button.
  virtual Result<void> press_power_button() = 0;
  // Ends the VM now; the process exits soon after.
  virtual void kill() = 0;

  // `paused_done`, if given, is called when the guest goes on and an in-place revert to the
  // snapshot works; `durable` when it is on disk and listed, or with the error that kept it from
  // being made. If the request is refused, only `durable` is called.
  virtual void create_snapshot(const SnapshotRequest& request,
                               std::function<void(const SnapshotResult&)> paused_done,
                               std::function<void(Result<SnapshotResult>)> durable) = 0;
  virtual Result<RevertResult> revert(const RevertRequest& request) = 0;
  // Lets go of a snapshot of this VM's and removes it from the store. Refused for the one that the VM
  // stands on, one that is being written, and one that others rest on; then it stays as it was.
  // Takes as long as the host takes to remove its files: the guest goes on meanwhile.
  virtual Result<void> delete_snapshot(const std::string& name) = 0;
};

}  // namespace control
