// The verbs `run` and `restore`: everything that can be refused is refused before anything is
// created; then the directory, the lock and the process are made, and the launcher takes over.

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "blockdev/disk_spec.h"
#include "snapshot/store.h"
#include "vmm/base/log.h"
#include "vmm/control/json_reader.h"
#include "vmm/control/size_text.h"
#include "vmm/control/start_pipe.h"
#include "vmm/control/verbs.h"

namespace control {
namespace {

Result<std::string> working_directory() {
  char buffer[PATH_MAX];
  if (::getcwd(buffer, sizeof buffer) == nullptr) return errno_error("name the working directory");
  if (!is_utf8(buffer)) {
    return make_error(ErrorKind::usage, "the name of the working directory is not UTF-8")
        .with_hint("go elsewhere, or give names that start with /");
  }
  return std::string(buffer);
}

// Only a relative name needs the working directory, which may have been deleted.
Result<std::string> absolute(const std::string& path) {
  if (path.empty() || path.starts_with('/')) return path;
  return TRY(working_directory()) + "/" + path;
}

enum class FileKinds : u8 { regular, regular_or_block };

Result<void> check_readable(std::string_view what, const std::string& path, FileKinds kinds) {
  const std::string context = fmt::format("{} \"{}\"", what, path);
  if (path.empty()) return make_error(ErrorKind::usage, "{}: the name is empty", context);
  struct stat status {};
  // Looked at before it is opened: opening a FIFO waits, opening a device acts.
  if (::stat(path.c_str(), &status) != 0) return errno_error("{}", context);
  const bool good =
      S_ISREG(status.st_mode) || (S_ISBLK(status.st_mode) && kinds == FileKinds::regular_or_block);
  if (!good) return make_error(ErrorKind::unsupported, "{} is not a file", context);
  if (::access(path.c_str(), R_OK) != 0) {
    return errno_error("{}", context).with_hint("make it readable for this user");
  }
  if (S_ISREG(status.st_mode) && status.st_size == 0) {
    return make_error(ErrorKind::corrupt, "{} is empty", context);
  }
  return {};
}

Result<std::string> absolute_disk(const std::string& argument) {
  blockdev::DiskSpec spec = TRY_CONTEXT(blockdev::parse_disk_spec(argument), "--disk");
  spec.path = TRY(absolute(spec.path));
  TRY(check_readable("disk", spec.path, FileKinds::regular_or_block));
  for (blockdev::BackingSpec& layer : spec.backing) {
    layer.path = TRY(absolute(layer.path));
    TRY(check_readable("backing file", layer.path, FileKinds::regular_or_block));
  }
  spec.backing_dir = TRY(absolute(spec.backing_dir));
  return blockdev::format_disk_spec(spec);
}

Result<MachineConfig> config_of(const RunOptions& options) {
  MachineConfig config;
  config.memory_bytes = TRY(parse_size("--memory", options.memory, base::kMiB));
  config.cpus = options.cpus;
  config.append = options.append_only ? *options.append_only : kernel_command_line(options.append);
  config.on_enospc = TRY(parse_no_space_policy(options.on_enospc));
  config.kernel = TRY(absolute(options.kernel));
  TRY(check_readable("kernel", config.kernel, FileKinds::regular));
  if (options.initrd) {
    config.initrd = TRY(absolute(*options.initrd));
    TRY(check_readable("initrd", *config.initrd, FileKinds::regular));
  }
  for (const std::string& disk : options.disks) config.disks.push_back(TRY(absolute_disk(disk)));
  TRY(config.validate());
  return config;
}

// Points the child's standard streams away from the parent's terminal and pipes.
Result<void> leave_terminal(const VmDirectory& directory) {
  const base::Fd null = TRY(base::open_file("/dev/null", O_RDWR));
  const base::Fd log = TRY(base::open_file(directory.vmm_log(), O_WRONLY | O_CREAT | O_APPEND));
  if (::setsid() < 0 || ::dup2(null.get(), STDIN_FILENO) < 0 ||
      ::dup2(null.get(), STDOUT_FILENO) < 0 || ::dup2(log.get(), STDERR_FILENO) < 0) {
    return errno_error("detach from the terminal");
  }
  return {};
}

int run_detached_child(LaunchRequest request, Launcher& launcher) {
  Result<void> prepared = leave_terminal(request.directory);
  if (prepared) prepared = record_owner(request.directory);
  if (!prepared) {
    report_failure(request.ready_pipe, prepared.error());
    return kExitInfrastructure;
  }
  return launcher.launch(std::move(request));
}

// The tail of what a process wrote that ended without a word to its parent.
std::string last_words(const std::string& vmm_log) {
  constexpr std::size_t kTailBytes = 2000;
  Result<std::string> log = base::read_whole_file(vmm_log, base::kMiB);
  if (!log) return "";
  return log->size() > kTailBytes ? log->substr(log->size() - kTailBytes) : *log;
}

void remove_after_failure(const Home& home, const std::string& name) {
  Result<VmDirectory> directory = find_vm_directory(home, name);
  if (!directory) return;
  Result<void> removed = lock_vm_directory(*directory);
  if (removed) removed = remove_vm_directory(*directory);
  if (!removed) report(removed.error());
}

Result<int> launch_detached(LaunchRequest request, Launcher& launcher) {
  const Home home = request.directory.home;
  const std::string name = request.directory.name;
  Result<StartPipe> created = StartPipe::create();
  Result<void> prepared = created ? record_no_owner(request.directory) : created.error();
  if (!prepared) {
    TRY(remove_vm_directory(request.directory));
    return std::move(prepared).error();
  }
  StartPipe pipe = std::move(*created);
  const std::string vmm_log = request.directory.vmm_log();
  const pid_t child = ::fork();
  if (child < 0) {
    Error error = errno_error("start a process for VM \"{}\"", name);
    TRY(remove_vm_directory(request.directory));
    return error;
  }
  if (child == 0) {
    pipe.read_end.reset();
    request.ready_pipe = std::move(pipe.write_end);
    return run_detached_child(std::move(request), launcher);
  }
  pipe.write_end.reset();
  request.directory.lock.reset();  // the child's copy holds the lock
  std::string message;
  const StartOutcome outcome = wait_for_start(pipe.read_end, message);
  if (outcome == StartOutcome::running) {
    put(name + "\n");
    return kExitDone;
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  if (outcome == StartOutcome::refused) {
    base::log_line(base::LogLevel::info, message.substr(0, message.find_last_not_of('\n') + 1));
  } else {
    report(
        make_error(ErrorKind::failed, "the process of VM \"{}\" ended before the guest ran", name)
            .with_hint(last_words(vmm_log)));
  }
  remove_after_failure(home, name);
  const bool has_status = outcome == StartOutcome::refused && WIFEXITED(status);
  return has_status && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : kExitInfrastructure;
}

enum class Keep : u8 { always, with_snapshots };

// This process becomes the VM.
Result<int> launch_here(LaunchRequest request, Keep keep, Launcher& launcher) {
  const Home home = request.directory.home;
  const std::string name = request.directory.name;
  request.console = ConsoleTarget::stdio;
  const int status = launcher.launch(std::move(request));
  Result<VmDirectory> directory = find_vm_directory(home, name);
  if (!directory) return status;
  // A named VM whose guest never said a word was refused: there is nothing to keep.
  struct stat console {};
  const bool is_unused =
      status != kExitDone &&
      (::stat(directory->console_log().c_str(), &console) != 0 || console.st_size == 0);
  if (has_snapshots(*directory) || has_disks(*directory)) return status;
  if (keep == Keep::always && !is_unused) return status;
  TRY(lock_vm_directory(*directory));
  TRY(remove_vm_directory(*directory));
  return status;
}

Result<int> launch(LaunchRequest request, bool is_named, Detach detach, Launcher& launcher) {
  if (detach == Detach::yes) return launch_detached(std::move(request), launcher);
  return launch_here(std::move(request), is_named ? Keep::always : Keep::with_snapshots, launcher);
}

}  // namespace

std::string kernel_command_line(const std::string& append) {
  const bool has_console = (" " + append).find(" console=") != std::string::npos;
  std::string line = has_console ? "panic=-1" : "console=ttyS0 panic=-1";
  if (!append.empty()) line += " " + append;
  return line;
}

Result<int> run(const RunOptions& options, Launcher& launcher) {
  const Home home = TRY(Home::from_environment());
  const std::string name = options.name.empty() ? generate_name() : options.name;
  TRY(check_name("VM", name));
  LaunchRequest request;
  if (options.configured == Configured::now) request.boot = TRY(config_of(options));
  request.directory = TRY(create_vm_directory(home, name));
  const Result<void> written =
      request.boot ? write_config(request.directory, *request.boot) : Result<void>();
  if (!written) {
    TRY(remove_vm_directory(request.directory));
    return written.error();
  }
  return launch(std::move(request), !options.name.empty(), options.detach, launcher);
}

Result<int> restore(const RestoreOptions& options, Launcher& launcher) {
  const Home home = TRY(Home::from_environment());
  const SnapshotReference reference = TRY(parse_snapshot_reference(options.snapshot));
  const std::string name = options.name.empty() ? generate_name() : options.name;
  TRY(check_name("VM", name));
  const auto store = TRY(snapshot::SnapshotStore::open(home.snapshots(), home.vms()));
  const snapshot::Uuid uuid = TRY(store.resolve(reference.vm, reference.name));
  // Held until the launcher has opened it too: nobody may remove it in between.
  const snapshot::SnapshotObject object =
      TRY_CONTEXT(store.open(uuid), fmt::format("snapshot '{}'", options.snapshot));
  const MachineConfig config = TRY(MachineConfig::from_json(object.manifest().machine));

  LaunchRequest request;
  request.restore_uuid = uuid.to_string();
  request.clock = TRY(parse_clock_policy(options.clock));
  request.verify = options.verify;
  request.directory = TRY(create_vm_directory(home, name));
  if (const Result<void> written = write_config(request.directory, config); !written) {
    TRY(remove_vm_directory(request.directory));
    return written.error();
  }
  return launch(std::move(request), !options.name.empty(), options.detach, launcher);
}

}  // namespace control
