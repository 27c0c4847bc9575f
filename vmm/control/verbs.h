// The verbs of the command line, after their options were parsed (cli.cc). Each prints its result
// and returns the exit status, or an Error for main() to print.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/control/launcher.h"
#include "vmm/control/output.h"

namespace control {

enum class Detach : u8 { no, yes };

// Whether `run` makes a machine or only its process and API (api_server.h).
enum class Configured : u8 { now, later };

struct RunOptions {
  Configured configured = Configured::now;
  std::string kernel;
  std::optional<std::string> initrd;
  std::string append;                      // added to the default line
  std::optional<std::string> append_only;  // replaces it
  std::vector<std::string> disks;
  std::string memory = "512M";
  u32 cpus = 1;
  std::string name;  // empty: generated
  Detach detach = Detach::no;
  std::string on_enospc = "pause";
};
Result<int> run(const RunOptions& options, Launcher& launcher);

struct RestoreOptions {
  std::string snapshot;  // VM@NAME
  std::string name;
  Detach detach = Detach::no;
  std::string clock = "realtime";
  Verify verify = Verify::no;
};
Result<int> restore(const RestoreOptions& options, Launcher& launcher);

// What the kernel is told if nobody says otherwise: the console where `console` and `logs` look for
// it, and an end instead of a hang after a panic. `append` comes after it and so wins; a console=
// of its own leaves ours out.
std::string kernel_command_line(const std::string& append);

// --- a VM, live or not (verbs_vm.cc) ---
Result<int> list_vms(Output output);
Result<int> inspect(const std::string& vm);
Result<int> set_state(const std::string& vm, VmState state);
Result<int> stop(const std::string& vm, u64 timeout_s);
Result<int> kill(const std::string& vm);
enum class Force : u8 { no, yes };
Result<int> remove(const std::vector<std::string>& vms, Force force);

// --- its console (verbs_console.cc) ---
Result<int> console(const std::string& vm);
enum class Follow : u8 { no, yes };
enum class LogKind : u8 { console, vmm };
Result<int> logs(const std::string& vm, Follow follow, LogKind kind);

// --- its snapshots (verbs_snapshot.cc). `snapshot` is VM@NAME ---
struct SnapshotCreateOptions {
  std::string vm;
  std::string name;
  std::string description;
  bool wait = true;
};
Result<int> snapshot_create(const SnapshotCreateOptions& options, Output output);
enum class ListForm : u8 { table, tree };
Result<int> snapshot_list(const std::string& vm, ListForm form, Output output);
Result<int> snapshot_show(const std::string& snapshot, Output output);
Result<int> snapshot_check(const std::string& snapshot, Output output);
Result<int> snapshot_delete(const std::string& snapshot);

struct RevertOptions {
  std::string vm;
  std::string snapshot;
  std::string clock = "realtime";
  Verify verify = Verify::no;
};
Result<int> revert(const RevertOptions& options, Output output);

// --- the host (doctor.cc) ---
Result<int> doctor(Launcher& launcher, Output output);

// VM@NAME taken apart and checked.
struct SnapshotReference {
  std::string vm;
  std::string name;
};
Result<SnapshotReference> parse_snapshot_reference(const std::string& text);

}  // namespace control
