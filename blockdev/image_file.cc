#include "blockdev/image_file.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>

#include "blockdev/image_lock.h"

namespace blockdev {
namespace {

// O_NONBLOCK: a FIFO would wait for its writer. let_block() takes it back.
constexpr int kOpenFlags = O_NONBLOCK | O_NOCTTY | O_CLOEXEC;

enum class Accept : u8 { files, files_and_devices };

std::string resolved_path(const base::Fd& fd, const std::string& path) {
  char target[PATH_MAX];
  const std::string link = fmt::format("/proc/self/fd/{}", fd.get());
  const ssize_t length = ::readlink(link.c_str(), target, sizeof target);
  return length > 0 ? std::string(target, static_cast<std::size_t>(length)) : path;
}

// Linux up to 6.4 passes O_NONBLOCK of a block device on from io_uring: each request that its driver
// cannot take at once then ends with EAGAIN.
Result<void> let_block(const base::Fd& fd, const std::string& path) {
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK) != 0) {
    return errno_error("set up \"{}\"", path);
  }
  return {};
}

Result<struct stat> status_of(const base::Fd& fd, const std::string& path) {
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return errno_error("stat \"{}\"", path);
  return status;
}

using LockFunction = Result<void>(const base::Fd& fd, const std::string& path);

Result<void> leave_unlocked(const base::Fd&, const std::string&) { return {}; }

LockFunction& lock_for_reading(ImageLocking locking) {
  return locking == ImageLocking::shared ? lock_image_for_reading : leave_unlocked;
}

Result<ImageFile> take_file(base::Fd fd, const std::string& path, ImageFormat format, Accept accept,
                            LockFunction& lock) {
  const struct stat status = TRY(status_of(fd, path));
  const bool is_device = S_ISBLK(status.st_mode) && accept == Accept::files_and_devices;
  if (!S_ISREG(status.st_mode) && !is_device) {
    return make_error(ErrorKind::usage, "disk \"{}\" is {}", path,
                      S_ISDIR(status.st_mode) ? "a directory" : "not a regular file")
        .with_hint("a disk is a regular file or a block device");
  }
  TRY(let_block(fd, path));
  TRY(lock(fd, path));
  ImageIdentity identity = TRY(identify_image(fd, path, format));
  return ImageFile{std::move(fd), std::move(identity)};
}

}  // namespace

Result<ImageFile> open_image_file(const std::string& path, ImageFormat format,
                                  ImageLocking locking) {
  base::Fd fd(::open(path.c_str(), kOpenFlags | O_RDONLY));
  if (!fd) return errno_error("disk \"{}\"", path);
  return take_file(std::move(fd), path, format, Accept::files_and_devices,
                   lock_for_reading(locking));
}

Result<ImageFile> open_image_file_for_writing(const std::string& path, ImageFormat format) {
  base::Fd fd(::open(path.c_str(), kOpenFlags | O_RDWR));
  if (!fd) {
    return errno_error("disk \"{}\" cannot be written", path)
        .with_hint("make it writable for this user, or use mode=overlay or mode=ro");
  }
  return take_file(std::move(fd), path, format, Accept::files_and_devices, lock_image_for_writing);
}

Result<ImageIdentity> identify_image(const base::Fd& fd, const std::string& path,
                                     ImageFormat format) {
  const struct stat status = TRY(status_of(fd, path));
  ImageIdentity identity;
  identity.path = resolved_path(fd, path);
  identity.format = format;
  identity.device = status.st_dev;
  identity.inode = status.st_ino;
  identity.size_bytes = TRY(base::file_size(fd));
  // A device's node says nothing of what is written to the device.
  if (!S_ISBLK(status.st_mode)) {
    identity.mtime_ns = i64{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
  }
  return identity;
}

Result<ImageFile> open_image_file_beneath(const std::string& directory, const std::string& name,
                                          ImageFormat format, ImageLocking locking) {
  const base::Fd root(::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!root) return errno_error("backing-dir \"{}\"", directory);
  open_how how{};
  how.flags = kOpenFlags | O_RDONLY;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;
  base::Fd fd(static_cast<int>(::syscall(SYS_openat2, root.get(), name.c_str(), &how, sizeof how)));
  if (!fd) {
    return errno_error("backing file \"{}\" below \"{}\"", name, directory)
        .with_hint(
            "only plain files below backing-dir are opened, and no symbolic link is followed");
  }
  return take_file(std::move(fd), name, format, Accept::files, lock_for_reading(locking));
}

}  // namespace blockdev
