// VmDirectory: where one VM's files are, and Home: where all of them are.
//
//   $QUICKSAVE_HOME/                 default ${XDG_STATE_HOME:-~/.local/state}/quicksave
//     vms/NAME/lock                  OFD write lock: held by the VM's process while it lives
//             /config.json           MachineConfig
//             /console.log           what the guest wrote, since it was started; appended, never cut
//             /vmm.log               the VMM's own messages
//             /refs/SNAPSHOT         one small file per snapshot name: the object's UUID
//     snapshots/UUID/                snapshot objects (snapshot/store.h)
//   runtime directory/NAME/          $QUICKSAVE_HOME/run where that variable is set, else
//             /api.sock              $XDG_RUNTIME_DIR/quicksave, else the home's run/
//             /console.sock
//
// All directories are 0700, all files 0600.

#pragma once

#include <string>
#include <vector>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace control {

struct Home {
  std::string state;    // absolute, no trailing slash
  std::string runtime;

  // From the environment; creates nothing.
  static Result<Home> from_environment();
  std::string vms() const { return state + "/vms"; }
  std::string snapshots() const { return state + "/snapshots"; }
};

struct VmDirectory {
  Home home;
  std::string name;
  base::Fd lock;  // empty for a client that only looks

  std::string path() const { return home.vms() + "/" + name; }
  std::string config_file() const { return path() + "/config.json"; }
  std::string console_log() const { return path() + "/console.log"; }
  std::string vmm_log() const { return path() + "/vmm.log"; }
  std::string refs() const { return path() + "/refs"; }
  std::string runtime() const { return home.runtime + "/" + name; }
  std::string api_socket() const { return runtime() + "/api.sock"; }
  std::string console_socket() const { return runtime() + "/console.sock"; }
};

// A name is 1 to 64 of [A-Za-z0-9._-], not starting with '.' or '-'.
Result<void> check_name(std::string_view what, std::string_view name);

}  // namespace control
