// Launcher: the door from the command line to the machine. The command line prepares the VM's
// directory, lock, log and process; the launcher turns that process into the VM.
//
// What a launcher usually does with what this folder offers:
//   ConsoleHub::create() first, so that the guest's first byte finds it; ApiServer::create();
//   end_on_signals(); start the vCPUs; report_ready(); loop.run(); the hub's and server's finish().

#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "vmm/base/fd.h"
#include "vmm/control/loop.h"
#include "vmm/control/machine_config.h"
#include "vmm/control/vm_control.h"
#include "vmm/control/vm_directory.h"

namespace control {

enum class ConsoleTarget : u8 {
  none,   // detached: log and console socket only
  stdio,  // foreground: the guest's console on stdin and stdout too
};

struct LaunchRequest {
  VmDirectory directory;  // exists, locked by this process
  ConsoleTarget console = ConsoleTarget::none;
  // Written to once the vCPUs run: one byte 0; or the text of an error. Closed afterwards. Absent
  // in the foreground.
  std::optional<base::Fd> ready_pipe;

  // At most one of the two ways to begin; with neither, the VM is unconfigured until its API is told.
  std::optional<MachineConfig> boot;
  std::optional<std::string>
      restore_uuid;  // a snapshot in the store, locked shared by this process
  ClockPolicy clock = ClockPolicy::realtime;
  Verify verify = Verify::no;  // restore: check every byte of memory first
};

// Tells the parent of a detached VM how the start went, and closes the pipe. Nothing happens
// without a pipe.
void report_ready(std::optional<base::Fd>& pipe);
void report_failure(std::optional<base::Fd>& pipe, const Error& error);

// SIGTERM, SIGINT and SIGHUP call `end` on the loop's thread; one that comes a second or more after
// the first kills. `loop` must run until the process ends.
void end_on_signals(Loop& loop, std::function<void(int signal)> end);

// One line of `doctor`.
enum class Health : u8 { good, odd, bad };  // bad: VMs cannot run here
struct DoctorLine {
  std::string what;  // "KVM"
  Health health = Health::good;
  std::string detail;  // "kvm_pvm, API 12"
  std::string remedy;  // empty if none is needed
};

class Launcher {
 public:
  virtual ~Launcher() = default;
  // What only the machine's side knows of this host, for `doctor`. Called only if /dev/kvm opens.
  virtual std::vector<DoctorLine> host_report() { return {}; }
  // `quicksave bench ARGUMENTS...`; the exit status.
  virtual int bench(const std::vector<std::string>& arguments);
  // `quicksave soak ARGUMENTS...`
  virtual int soak(const std::vector<std::string>& arguments);
  // `quicksave image ARGUMENTS...`
  virtual int image(const std::vector<std::string>& arguments);

  // Runs the VM until it ends. The status: 0 the guest powered off, 1 it crashed or was refused
  // (after a message), 125 the VMM failed.
  virtual int launch(LaunchRequest request) = 0;
};

}  // namespace control
