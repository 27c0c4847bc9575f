#include "snapshot/file_lock.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string_view>

namespace snapshot {
namespace {

struct CloseDirectory {
  void operator()(DIR* directory) const { ::closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

bool has_open(const std::string& process, const struct stat& wanted) {
  const Directory fds(::opendir((process + "/fd").c_str()));
  if (fds == nullptr) return false;
  while (const dirent* const entry = ::readdir(fds.get())) {
    struct stat status {};
    if (::fstatat(::dirfd(fds.get()), entry->d_name, &status, 0) != 0) continue;
    if (status.st_dev == wanted.st_dev && status.st_ino == wanted.st_ino) return true;
  }
  return false;
}

std::string command_of(const std::string& process) {
  const Result<base::Fd> file = base::open_file(process + "/comm", O_RDONLY);
  if (!file) return "?";
  char text[64] = {};
  const ssize_t count = ::read(file->get(), text, sizeof text - 1);
  return std::string(text, count > 0 ? static_cast<std::size_t>(count - 1) : 0);
}

}  // namespace

Result<bool> is_locked(const base::Fd& file) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (::fcntl(file.get(), F_OFD_GETLK, &lock) != 0) return errno_error("look at a lock");
  return lock.l_type != F_UNLCK;
}

Result<void> lock_file(const base::Fd& file, LockMode mode, LockWait wait) {
  struct flock lock {};
  lock.l_type = mode == LockMode::shared ? F_RDLCK : F_WRLCK;
  lock.l_whence = SEEK_SET;
  const int command = wait == LockWait::yes ? F_OFD_SETLKW : F_OFD_SETLK;
  while (::fcntl(file.get(), command, &lock) != 0) {
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EACCES) return make_error(ErrorKind::busy, "in use");
    return errno_error("lock a file");
  }
  return {};
}

std::string users_of_file(const std::string& path) {
  struct stat wanted {};
  if (::stat(path.c_str(), &wanted) != 0) return {};
  const Directory processes(::opendir("/proc"));
  if (processes == nullptr) return {};
  std::string users;
  while (const dirent* const entry = ::readdir(processes.get())) {
    const std::string_view name = entry->d_name;
    if (!std::ranges::all_of(name, [](char c) { return c >= '0' && c <= '9'; })) continue;
    const std::string process = fmt::format("/proc/{}", name);
    if (!has_open(process, wanted)) continue;
    users += fmt::format("{}process {} ({})", users.empty() ? "" : ", ", name, command_of(process));
  }
  return users;
}

}  // namespace snapshot
