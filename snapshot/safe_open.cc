#include "snapshot/safe_open.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "snapshot/manifest.h"

namespace snapshot {
namespace {

Result<void> check_owner(const struct stat& status, std::string_view what, std::string_view name) {
  if (status.st_uid != ::geteuid()) {
    return make_error(ErrorKind::denied, "{} \"{}\" belongs to user {}, not to you ({})", what,
                      name, status.st_uid, ::geteuid());
  }
  if ((status.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return make_error(ErrorKind::denied, "{} \"{}\" can be written by others (mode {:04o})", what,
                      name, status.st_mode & 07777);
  }
  return {};
}

}  // namespace

Result<base::Fd> open_plain_file(const base::Fd& directory, const std::string& name,
                                 HardLinks allowed) {
  TRY(check_plain_name("file name", name));
  open_how how{};
  // O_NONBLOCK: opening a pipe must not wait for a writer.
  how.flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  base::Fd file(
      static_cast<int>(::syscall(SYS_openat2, directory.get(), name.c_str(), &how, sizeof how)));
  if (!file) return errno_error("open \"{}\"", name);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return errno_error("stat \"{}\"", name);
  if (!S_ISREG(status.st_mode)) {
    return make_error(ErrorKind::corrupt, "\"{}\" is not a regular file", name);
  }
  const nlink_t most = allowed == HardLinks::none ? 1 : 2;
  if (status.st_nlink > most) {
    return make_error(ErrorKind::corrupt, "\"{}\" has {} hard links, may have {}", name,
                      status.st_nlink, most == 1 ? "one" : "two");
  }
  TRY(check_owner(status, "file", name));
  return file;
}

Result<base::Fd> open_sized_file(const base::Fd& directory, const std::string& name, u64 size_bytes,
                                 HardLinks allowed) {
  base::Fd file = TRY(open_plain_file(directory, name, allowed));
  const u64 size = TRY(base::file_size(file));
  if (size != size_bytes) {
    return make_error(ErrorKind::corrupt, "\"{}\" has {} bytes, the manifest says {}", name, size,
                      size_bytes);
  }
  return file;
}

Result<base::Fd> open_private_directory(const std::string& path) {
  base::Fd directory = TRY(base::open_file(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
  struct stat status {};
  if (::fstat(directory.get(), &status) != 0) return errno_error("stat \"{}\"", path);
  TRY(check_owner(status, "directory", path));
  return directory;
}

}  // namespace snapshot
