#include "vmm/control/vm_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "snapshot/disk_heads.h"
#include "snapshot/file_lock.h"
#include "vmm/base/directories.h"
#include "vmm/base/log.h"
#include "vmm/control/json_reader.h"

namespace control {
namespace {

constexpr u64 kMaximumNameBytes = 64;
constexpr u64 kMaximumConfigBytes = base::kMiB;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

Result<std::string> made_absolute(const char* what, std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  if (path.starts_with('/')) return path;
  char buffer[PATH_MAX];
  if (::getcwd(buffer, sizeof buffer) == nullptr) {
    return errno_error("{} is \"{}\", relative to a directory that cannot be named", what, path);
  }
  return fmt::format("{}/{}", buffer, path);
}

Result<base::Fd> open_lock_file(const VmDirectory& directory, int flags) {
  return base::open_file(directory.path() + "/lock", flags | O_NOFOLLOW);
}

Result<void> lock_new(VmDirectory& directory) {
  base::Fd lock = TRY(open_lock_file(directory, O_RDWR | O_CREAT | O_EXCL));
  Result<void> locked =
      snapshot::lock_file(lock, snapshot::LockMode::exclusive, snapshot::LockWait::no);
  if (!locked && locked.error().kind() == ErrorKind::busy) {
    return make_error(ErrorKind::busy, "VM \"{}\" is being removed by another process",
                      directory.name);
  }
  if (locked) directory.lock = std::move(lock);
  return locked;
}

Result<void> fill(const VmDirectory& directory) {
  TRY(record_owner(directory));
  if (::mkdir(directory.refs().c_str(), 0700) != 0) {
    return errno_error("create directory \"{}\"", directory.refs());
  }
  TRY(base::make_directories(directory.home.runtime));
  if (::mkdir(directory.runtime().c_str(), 0700) != 0 && errno != EEXIST) {
    return errno_error("create directory \"{}\"", directory.runtime());
  }
  return {};
}

constexpr std::string_view kEnding = "ending\n";

// What the holder says of itself: its pid, and below that whether it ends.
std::string text_of(const base::Fd& lock_file) {
  char text[32];
  const ssize_t count = ::pread(lock_file.get(), text, sizeof text, 0);
  return {text, count > 0 ? static_cast<std::size_t>(count) : 0};
}

u32 pid_in(const base::Fd& lock_file) {
  const std::string text = text_of(lock_file);
  u32 pid = 0;
  std::from_chars(text.data(), text.data() + text.size(), pid);
  return pid;
}

// The VM that had the file may be removed by now, and its name be another's.
bool is_lock_of(const VmDirectory& directory, const base::Fd& lock_file) {
  struct stat held {};
  struct stat named {};
  return ::fstat(lock_file.get(), &held) == 0 &&
         ::lstat((directory.path() + "/lock").c_str(), &named) == 0 &&
         held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

Error held_by_another(const VmDirectory& directory, const base::Fd& lock_file) {
  const u32 pid = pid_in(lock_file);
  if (pid == 0) {
    return make_error(ErrorKind::busy, "VM \"{}\" is being started or removed by another process",
                      directory.name)
        .with_hint("try again");
  }
  return make_error(ErrorKind::busy, "VM \"{}\" runs as process {}", directory.name, pid)
      .with_hint(fmt::format("quicksave stop {}", directory.name));
}

std::string known_vms(const Home& home) {
  const Result<std::vector<std::string>> names = list_vm_names(home);
  if (!names || names->empty()) return "there is no VM; start one with quicksave run";
  return fmt::format("there is {}", fmt::join(*names, ", "));
}

}  // namespace

Result<Home> Home::from_environment() {
  Home home;
  const std::string own = variable("QUICKSAVE_HOME");
  const std::string runtime = variable("XDG_RUNTIME_DIR");
  if (!own.empty()) {
    home.state = TRY(made_absolute("QUICKSAVE_HOME", own));
    home.runtime = home.state + "/run";
    return home;
  }
  const std::string xdg_state = variable("XDG_STATE_HOME");
  if (xdg_state.starts_with('/')) {  // the XDG specification: relative ones are to be ignored
    home.state = TRY(made_absolute("XDG_STATE_HOME", xdg_state)) + "/quicksave";
  } else {
    const std::string user = variable("HOME");
    if (user.empty()) {
      return make_error(ErrorKind::usage, "nowhere to keep VMs: HOME is not set")
          .with_hint("set QUICKSAVE_HOME to a directory");
    }
    home.state = TRY(made_absolute("HOME", user)) + "/.local/state/quicksave";
  }
  home.runtime = runtime.starts_with('/') ? runtime + "/quicksave" : home.state + "/run";
  return home;
}

Result<void> check_name(std::string_view what, std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  if (!name.empty() && name.size() <= kMaximumNameBytes && name[0] != '.' && name[0] != '-' &&
      std::all_of(name.begin(), name.end(), allowed)) {
    return {};
  }
  std::string shown;  // printable whatever it is, and no longer than needed to recognise it
  for (const char c : name.substr(0, kMaximumNameBytes)) shown += c >= ' ' && c < 0x7f ? c : '?';
  return make_error(ErrorKind::usage, "\"{}\" cannot be the name of a {}", shown, what)
      .with_hint("a name is 1 to 64 of A-Z a-z 0-9 . _ - and starts with none of . -");
}

// Without fsync, which costs more than all the rest of a start: the first snapshot makes the
// directory durable (SnapshotStore::publish()).
Result<VmDirectory> create_vm_directory(const Home& home, std::string_view name) {
  TRY(check_name("VM", name));
  VmDirectory directory{home, std::string(name), {}};
  TRY(base::make_directories(home.vms()));
  if (::mkdir(directory.path().c_str(), 0700) != 0) {
    if (errno != EEXIST) return errno_error("create directory \"{}\"", directory.path());
    return make_error(ErrorKind::exists, "VM \"{}\" exists already", name)
        .with_hint(
            fmt::format("take another name, or: quicksave stop {0}; quicksave rm {0}", name));
  }
  Result<void> locked = lock_new(directory);
  if (!locked) {
    ::rmdir(directory.path().c_str());  // not empty: another process has it by now
    return std::move(locked).error();
  }
  Result<void> filled = fill(directory);
  if (filled) return directory;
  if (const Result<void> removed = remove_vm_directory(directory); !removed) {
    base::log(base::LogLevel::warning, "{}", removed.error().message());
  }
  return std::move(filled).error();
}

Result<VmDirectory> find_vm_directory(const Home& home, std::string_view name) {
  TRY(check_name("VM", name));
  VmDirectory directory{home, std::string(name), {}};
  struct stat status {};
  if (::lstat(directory.path().c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) {
    return make_error(ErrorKind::not_found, "no VM is called \"{}\"", name)
        .with_hint(known_vms(home));
  }
  return directory;
}

Result<void> lock_vm_directory(VmDirectory& directory) {
  Result<base::Fd> opened = open_lock_file(directory, O_RDWR | O_CREAT);
  if (!opened) {
    TRY(find_vm_directory(directory.home, directory.name));  // somebody removed it meanwhile
    return std::move(opened).error().with_context(fmt::format("VM \"{}\"", directory.name));
  }
  Result<void> locked =
      snapshot::lock_file(*opened, snapshot::LockMode::exclusive, snapshot::LockWait::no);
  if (!locked) {
    return locked.error().kind() == ErrorKind::busy ? held_by_another(directory, *opened)
                                                    : std::move(locked).error();
  }
  if (!is_lock_of(directory, *opened)) {
    TRY(find_vm_directory(directory.home, directory.name));
    return make_error(ErrorKind::busy, "VM \"{}\" was removed by another process", directory.name)
        .with_hint("a new one has its name; try again if that is meant");
  }
  directory.lock = std::move(*opened);
  return record_no_owner(directory);  // a pid of old must not be taken for ours, and killed
}

Result<void> record_no_owner(const VmDirectory& directory) {
  if (::ftruncate(directory.lock.get(), 0) != 0) return errno_error("write the lock file");
  return {};
}

Result<void> record_owner(const VmDirectory& directory) {
  const std::string text = fmt::format("{}\n", ::getpid());
  TRY(record_no_owner(directory));
  return base::write_exactly(directory.lock,
                             {reinterpret_cast<const u8*>(text.data()), text.size()}, 0);
}

Result<void> record_ending(const VmDirectory& directory) {
  const u64 offset = TRY(base::file_size(directory.lock));
  return base::write_exactly(directory.lock,
                             {reinterpret_cast<const u8*>(kEnding.data()), kEnding.size()}, offset);
}

Result<void> remove_vm_directory(const VmDirectory& directory) {
  std::error_code code;
  std::filesystem::remove_all(directory.runtime(), code);
  // The lock file goes last: until then nobody else can take the name.
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(directory.path(), ignored)) {
    if (entry.path().filename() != "lock") std::filesystem::remove_all(entry.path(), code);
  }
  std::filesystem::remove_all(directory.path(), code);
  if (code) {
    return make_error(ErrorKind::failed, "remove \"{}\": {}", directory.path(), code.message());
  }
  return {};
}

Result<void> write_config(const VmDirectory& directory, const MachineConfig& config) {
  const std::string text = config.to_json().dump(2) + "\n";
  const base::Fd fd = TRY(base::open_file(directory.config_file(), O_WRONLY | O_CREAT | O_TRUNC));
  return base::write_all(fd, {reinterpret_cast<const u8*>(text.data()), text.size()});
}

Result<MachineConfig> read_config(const VmDirectory& directory) {
  const std::string text = TRY(base::read_whole_file(directory.config_file(), kMaximumConfigBytes));
  return MachineConfig::from_json(TRY(parse_json(directory.config_file(), text)));
}

Result<std::vector<std::string>> list_vm_names(const Home& home) {
  std::vector<std::string> names;
  DIR* stream = ::opendir(home.vms().c_str());
  if (stream == nullptr) {
    if (errno == ENOENT) return names;
    return errno_error("list \"{}\"", home.vms());
  }
  while (const dirent* entry = ::readdir(stream)) {
    if (check_name("VM", entry->d_name)) names.emplace_back(entry->d_name);
  }
  ::closedir(stream);
  std::sort(names.begin(), names.end());
  return names;
}

Result<std::optional<u32>> owner_of(const VmDirectory& directory) {
  const Result<base::Fd> fd = open_lock_file(directory, O_RDONLY);
  if (!fd) {
    if (fd.error().kind() == ErrorKind::not_found) return std::optional<u32>();
    return fd.error();
  }
  if (!TRY_CONTEXT(snapshot::is_locked(*fd), fmt::format("VM \"{}\"", directory.name))) {
    return std::optional<u32>();
  }
  return std::optional<u32>(pid_in(*fd));
}

bool is_ending(const VmDirectory& directory) {
  const Result<base::Fd> fd = open_lock_file(directory, O_RDONLY);
  return fd && text_of(*fd).ends_with(kEnding);
}

bool has_snapshots(const VmDirectory& directory) {
  std::error_code code;
  const std::filesystem::directory_iterator entries(directory.refs(), code);
  return !code && entries != std::filesystem::directory_iterator();
}

bool has_disks(const VmDirectory& directory) {
  std::error_code code;
  return std::filesystem::exists(directory.path() + "/" + snapshot::kDiskHeadsFile, code);
}

std::string generate_name() {
  constexpr std::string_view kLetters = "abcdefghijkmnpqrstuvwxyz23456789";  // 32, none alike
  u8 random[6] = {};
  // Six bytes: getrandom(2) neither fails nor comes up short after the kernel's pool is ready.
  [[maybe_unused]] const ssize_t count = ::getrandom(random, sizeof random, 0);
  std::string name = "vm-";
  for (const u8 byte : random) name += kLetters[byte % kLetters.size()];
  return name;
}

}  // namespace control
