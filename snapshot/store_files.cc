#include "snapshot/store_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <memory>

#include "blockdev/qcow2_check.h"
#include "vmm/base/check.h"

namespace snapshot {

Result<base::Fd> lock_store(const std::string& snapshots, LockMode mode) {
  base::Fd lock = TRY(base::open_file(snapshots + "/.lock", O_RDWR | O_CREAT, 0600));
  TRY(lock_file(lock, mode, LockWait::yes));
  return lock;
}

bool is_leftover(std::string_view name) {
  return name.starts_with(".trash-") ||
         (name.starts_with('.') && name.find(".tmp-") != std::string_view::npos);
}

std::string random_suffix() {
  u32 value = 0;
  CHECK(::getrandom(&value, sizeof value, 0) == sizeof value);
  return fmt::format("{:08x}", value);
}

Result<std::vector<std::string>> names_in(const std::string& path) {
  struct CloseDirectory {
    void operator()(DIR* directory) const { ::closedir(directory); }
  };
  const std::unique_ptr<DIR, CloseDirectory> directory(::opendir(path.c_str()));
  std::vector<std::string> names;
  if (directory == nullptr) {
    if (errno == ENOENT) return names;
    return errno_error("read directory \"{}\"", path);
  }
  while (const dirent* const entry = ::readdir(directory.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  std::ranges::sort(names);
  return names;
}

Result<void> seal_files(const std::string& path, const base::Fd& directory) {
  const std::vector<std::string> names = TRY(names_in(path));
  for (const std::string& name : names) {
    if (name == "lock") continue;
    const base::Fd file = TRY(base::open_file_at(directory, name, O_RDONLY | O_NOFOLLOW));
    if (::fchmod(file.get(), 0400) != 0) return errno_error("make \"{}\" read-only", name);
    TRY_CONTEXT(base::sync_file(file), fmt::format("\"{}\"", name));
  }
  return {};
}

Result<void> rename_new(const std::string& from, const std::string& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) != 0) {
    return errno_error("rename \"{}\" to \"{}\"", from, to);
  }
  return {};
}

namespace {

// The image's own tables must agree. A leak is space lost, not data.
Result<void> check_tables(const base::Fd& file, const DiskLayer& layer) {
  const auto report = TRY_CONTEXT(blockdev::qcow2::check_image(file), layer.file);
  if (report.corruptions + report.check_errors == 0) return {};
  return make_error(ErrorKind::corrupt, "\"{}\" is damaged: {}", layer.file,
                    report.findings.empty() ? "its tables disagree" : report.findings.front());
}

// Under `temporary` first; `appear` gives it its name.
Result<void> write_then(const std::string& temporary, std::string_view text,
                        const std::function<Result<void>()>& appear) {
  const auto write = [&]() -> Result<void> {
    const base::Fd file = TRY(base::open_file(temporary, O_WRONLY | O_CREAT | O_EXCL, 0600));
    TRY(base::write_all(file, {reinterpret_cast<const u8*>(text.data()), text.size()}));
    TRY(base::sync_file(file));
    return appear();
  };
  Result<void> written = write();
  if (!written) ::unlink(temporary.c_str());
  return written;
}

}  // namespace

Result<void> write_new_file(const std::string& directory, const std::string& name,
                            std::string_view text) {
  const std::string temporary = fmt::format("{}/.{}.tmp-{}", directory, name, random_suffix());
  const std::string path = directory + "/" + name;
  TRY(write_then(temporary, text, [&] { return rename_new(temporary, path); }));
  Result<void> synced = base::sync_directory(directory);
  if (!synced) ::unlink(path.c_str());
  return synced;
}

Result<void> replace_file(const std::string& directory, const std::string& name,
                          std::string_view text) {
  const std::string temporary = fmt::format("{}/.{}.tmp-{}", directory, name, random_suffix());
  const std::string path = directory + "/" + name;
  TRY(write_then(temporary, text, [&]() -> Result<void> {
    if (::rename(temporary.c_str(), path.c_str()) != 0) return errno_error("replace \"{}\"", path);
    return {};
  }));
  return base::sync_directory(directory);
}

Result<void> remove_file(const std::string& directory, const std::string& name) {
  const std::string path = directory + "/" + name;
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return errno_error("remove \"{}\"", path);
  return base::sync_directory(directory);
}

void remove_directory(const std::string& path) {
  const Result<std::vector<std::string>> names = names_in(path);
  if (!names) return;
  for (const std::string& name : *names) ::unlink((path + "/" + name).c_str());
  ::rmdir(path.c_str());
}

Result<void> check_disk_layer(const base::Fd& file, const DiskLayer& layer) {
  if (!layer.checksum) return check_tables(file, layer);
  const u64 found = TRY_CONTEXT(checksum64_of_file(file), layer.file);
  if (found != *layer.checksum) {
    return make_error(ErrorKind::corrupt, "\"{}\": checksum {:016x}, the manifest says {:016x}",
                      layer.file, found, *layer.checksum);
  }
  return {};
}

}  // namespace snapshot
