// VmDirectory: where one VM's files are, and Home: where all of them are.
//
//   $QUICKSAVE_HOME/                 default ${XDG_STATE_HOME:-~/.local/state}/quicksave
//     vms/NAME/lock                  OFD write lock: held by the VM's process while it lives
//             /config.json           MachineConfig
//             /console.log           what the guest wrote, since it was started; appended, never cut
//             /vmm.log               the VMM's own messages
//             /refs/SNAPSHOT         one small file per snapshot name: the object's UUID
//             /disks.json            where persistent disks are since their first snapshot
//             /disk-N-M.qcow2        their newest state
//     snapshots/UUID/                snapshot objects (snapshot/store.h)
//   runtime directory/NAME/          $QUICKSAVE_HOME/run where that variable is set, else
//             /api.sock              $XDG_RUNTIME_DIR/quicksave, else the home's run/
//             /console.sock
//
// All directories are 0700, all files 0600.

#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/base/types.h"
#include "vmm/control/machine_config.h"

namespace control {

struct Home {
  std::string state;  // absolute, no trailing slash
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

// Creates the directory of a VM that does not exist yet, and its runtime directory, and locks it.
// Fails with `exists` if there is one.
Result<VmDirectory> create_vm_directory(const Home& home, std::string_view name);

// The VM's directory, unlocked; fails with `not_found`, and names those there are.
Result<VmDirectory> find_vm_directory(const Home& home, std::string_view name);

// Takes the lock of a VM that does not run; fails with `busy` and the holder's pid if it does, or
// without one if another process removes the VM just now.
Result<void> lock_vm_directory(VmDirectory& directory);

// Writes this process's pid into the lock file, where `ps` finds it, or takes out whose is there:
// before a fork that hands the lock on, and after it in the child. REQUIRES: locked.
Result<void> record_owner(const VmDirectory& directory);
Result<void> record_no_owner(const VmDirectory& directory);
// Writes there, too, that this process ends: it listens no more, and may have much to write.
Result<void> record_ending(const VmDirectory& directory);

// Removes the directory, its references to snapshots and its sockets; the snapshot objects stay.
// REQUIRES: locked.
Result<void> remove_vm_directory(const VmDirectory& directory);

// Writes config.json. REQUIRES: locked.
Result<void> write_config(const VmDirectory& directory, const MachineConfig& config);
Result<MachineConfig> read_config(const VmDirectory& directory);

// All VMs, by name.
Result<std::vector<std::string>> list_vm_names(const Home& home);

// The process that holds the lock, if any: 0 if it has not said who it is yet.
Result<std::optional<u32>> owner_of(const VmDirectory& directory);
// Whether that process has called record_ending().
bool is_ending(const VmDirectory& directory);

// Names of the snapshots of this VM (files in refs/).
bool has_snapshots(const VmDirectory& directory);
// The newest state of a persistent disk is in it.
bool has_disks(const VmDirectory& directory);

// "vm-" and six random letters and digits.
std::string generate_name();

// A name is 1 to 64 of [A-Za-z0-9._-], not starting with '.' or '-'.
Result<void> check_name(std::string_view what, std::string_view name);

}  // namespace control
