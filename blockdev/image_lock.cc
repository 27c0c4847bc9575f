#include "blockdev/image_lock.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "vmm/base/log.h"

namespace blockdev {
namespace {

enum class ImageUse : u8 { read, write };

constexpr off_t kUsed = 100;
constexpr off_t kNotShared = 200;
constexpr off_t kRead = 0;
constexpr off_t kWrite = 1;
constexpr off_t kResize = 3;

struct flock byte_lock(short type, off_t byte) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(::opendir(directory.c_str()), ::closedir);
  if (stream == nullptr) return names;
  while (const dirent* entry = ::readdir(stream.get())) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  return names;
}

// Files of /proc have no size. Empty when it cannot be read.
std::string read_proc_file(const std::string& path) {
  const Result<base::Fd> fd = base::open_file(path, O_RDONLY);
  if (!fd) return {};
  char text[4096];
  const ssize_t count = ::read(fd->get(), text, sizeof text);
  return {text, count > 0 ? static_cast<std::size_t>(count) : 0};
}

// The kernel does not tell who holds an open-file-description lock (its pid is -1 everywhere), but
// fdinfo tells which descriptors hold one. Finds processes of the same user only.
std::optional<std::string> find_holder(const struct stat& image) {
  for (const std::string& pid : names_in("/proc")) {
    if (pid[0] < '0' || pid[0] > '9' || std::atol(pid.c_str()) == ::getpid()) continue;
    for (const std::string& fd : names_in("/proc/" + pid + "/fd")) {
      struct stat status {};
      if (::stat(fmt::format("/proc/{}/fd/{}", pid, fd).c_str(), &status) != 0) continue;
      if (status.st_dev != image.st_dev || status.st_ino != image.st_ino) continue;
      const std::string info = read_proc_file(fmt::format("/proc/{}/fdinfo/{}", pid, fd));
      if (info.find("OFDLCK") == std::string::npos) continue;
      std::string comm = read_proc_file(fmt::format("/proc/{}/comm", pid));
      while (!comm.empty() && comm.back() == '\n') comm.pop_back();
      return fmt::format("pid {} ({})", pid, comm);
    }
  }
  return std::nullopt;
}

Error locked_error(const base::Fd& fd, const std::string& path, ImageUse wanted) {
  struct stat image {};
  std::string holder = "another process";
  if (::fstat(fd.get(), &image) == 0) holder = find_holder(image).value_or(holder);
  // Who reads is in the way of a writer too; which of the two the holder is, its bytes do not tell
  // a program that takes bytes of its own.
  return make_error(ErrorKind::busy, "disk \"{}\" is locked{} by {}", path,
                    wanted == ImageUse::read ? " for writing" : "", holder)
      .with_hint(wanted == ImageUse::read
                     ? "stop that process, or give this VM a copy or an overlay of the image"
                     : "stop that process, or use mode=overlay, which leaves the image as it is");
}

Result<void> lock_image(const base::Fd& fd, const std::string& path, ImageUse use) {
  constexpr off_t kReader[] = {kUsed + kRead, kNotShared + kWrite, kNotShared + kResize};
  constexpr off_t kWriter[] = {kUsed + kRead, kUsed + kWrite, kUsed + kResize, kNotShared + kWrite,
                               kNotShared + kResize};
  constexpr off_t kAgainstReader[] = {kNotShared + kRead, kUsed + kWrite, kUsed + kResize};
  constexpr off_t kAgainstWriter[] = {kNotShared + kRead, kNotShared + kWrite, kNotShared + kResize,
                                      kUsed + kWrite, kUsed + kResize};
  const bool writes = use == ImageUse::write;
  // First take, then test: of two that come at once, at least one sees the other.
  for (const off_t byte : writes ? std::span<const off_t>(kWriter) : kReader) {
    struct flock lock = byte_lock(F_RDLCK, byte);
    if (::fcntl(fd.get(), F_OFD_SETLK, &lock) == 0) continue;
    if (errno == EAGAIN || errno == EACCES) return locked_error(fd, path, use);
    const Error error = errno_error("disk \"{}\": no locks on this file system", path);
    base::log(base::LogLevel::warning, "{}; nothing keeps others from writing it", error.message());
    return {};
  }
  for (const off_t byte : writes ? std::span<const off_t>(kAgainstWriter) : kAgainstReader) {
    struct flock lock = byte_lock(F_WRLCK, byte);
    if (::fcntl(fd.get(), F_OFD_GETLK, &lock) != 0) return errno_error("test lock of \"{}\"", path);
    if (lock.l_type != F_UNLCK) return locked_error(fd, path, use);
  }
  return {};
}

}  // namespace

Result<void> lock_image_for_reading(const base::Fd& fd, const std::string& path) {
  return lock_image(fd, path, ImageUse::read);
}

Result<void> lock_image_for_writing(const base::Fd& fd, const std::string& path) {
  return lock_image(fd, path, ImageUse::write);
}

void keep_lock_of_reader(int fd) {
  for (const off_t byte : {kUsed + kWrite, kUsed + kResize}) {
    struct flock lock = byte_lock(F_UNLCK, byte);
    // Giving up what is held cannot fail; where there are no locks, nothing is held.
    ::fcntl(fd, F_OFD_SETLK, &lock);
  }
}

}  // namespace blockdev
