// Launcher: the door from the command line to the machine. The command line prepares the VM's
// directory, lock, log and process; the launcher turns that process into the VM.

#pragma once

#include <optional>
#include <string>

#include "vmm/base/fd.h"
#include "vmm/control/machine_config.h"
#include "vmm/control/vm_control.h"
#include "vmm/control/vm_directory.h"

namespace control {

enum class ConsoleTarget : u8 {
  none,     // detached: log and console socket only
  stdio,    // foreground: the guest's console on stdin and stdout too
};

struct LaunchRequest {
  VmDirectory directory;      // exists, locked by this process
  ConsoleTarget console = ConsoleTarget::none;
  // Written to once the vCPUs run: one byte 0; or the text of an error. Closed afterwards. Absent in
  // the foreground.
  std::optional<base::Fd> ready_pipe;

  // Exactly one of the two ways to begin:
  std::optional<MachineConfig> boot;
  std::optional<std::string> restore_uuid;  // a snapshot in the store, locked shared by this process
  ClockPolicy clock = ClockPolicy::realtime;
  Verify verify = Verify::no;               // restore: check every byte of memory first
};

class Launcher {
 public:
  virtual ~Launcher() = default;
  // Runs the VM until it ends. The status: 0 the guest powered off, 1 it crashed or was refused
  // (after a message), 125 the VMM failed.
  virtual int launch(LaunchRequest request) = 0;
};

}  // namespace control
