#include "vmm/base/fd.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/base/check.h"

namespace base {
namespace {

// Repeats `transfer(data, size, done_bytes)` until `size` bytes went through.
template <class Transfer>
Result<void> transfer_all(u64 size, std::string_view what, Transfer transfer) {
  u64 done = 0;
  while (done < size) {
    const ssize_t count = transfer(done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno_error("{}", what);
    if (count == 0) {
      return make_error(ErrorKind::corrupt, "{}: file ends {} bytes early", what, size - done);
    }
    done += static_cast<u64>(count);
  }
  return {};
}

}  // namespace

void Fd::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

Result<Fd> Fd::duplicate() const {
  Fd copy(::fcntl(fd_, F_DUPFD_CLOEXEC, 3));
  if (!copy) return errno_error("duplicate file descriptor");
  return copy;
}

Result<Fd> open_file(const std::string& path, int flags, u32 mode) {
  Fd fd(::open(path.c_str(), flags | O_CLOEXEC, mode));
  if (!fd) return errno_error("open \"{}\"", path);
  return fd;
}

Result<Fd> open_file_at(const Fd& directory, const std::string& name, int flags, u32 mode) {
  Fd fd(::openat(directory.get(), name.c_str(), flags | O_CLOEXEC, mode));
  if (!fd) return errno_error("open \"{}\"", name);
  return fd;
}

Result<void> read_exactly(const Fd& fd, std::span<u8> buffer, u64 offset) {
  return transfer_all(buffer.size(), "read", [&](u64 done) {
    return ::pread(fd.get(), buffer.data() + done, buffer.size() - done,
                   static_cast<off_t>(offset + done));
  });
}

Result<void> write_exactly(const Fd& fd, std::span<const u8> buffer, u64 offset) {
  return transfer_all(buffer.size(), "write", [&](u64 done) {
    return ::pwrite(fd.get(), buffer.data() + done, buffer.size() - done,
                    static_cast<off_t>(offset + done));
  });
}

Result<void> write_all(const Fd& fd, std::span<const u8> buffer) {
  return transfer_all(buffer.size(), "write", [&](u64 done) {
    return ::write(fd.get(), buffer.data() + done, buffer.size() - done);
  });
}

Result<std::string> read_whole_file(const std::string& path, u64 limit_bytes) {
  const Fd fd = TRY(open_file(path, O_RDONLY));
  const u64 size = TRY_CONTEXT(file_size(fd), fmt::format("\"{}\"", path));
  if (size > limit_bytes) {
    return make_error(ErrorKind::corrupt, "\"{}\" has {} bytes, more than the {} it may have", path,
                      size, limit_bytes);
  }
  std::string text(size, '\0');
  TRY_CONTEXT(read_exactly(fd, {reinterpret_cast<u8*>(text.data()), text.size()}, 0),
              fmt::format("\"{}\"", path));
  return text;
}

Result<u64> file_size(const Fd& fd) {
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return errno_error("stat");
  if (S_ISBLK(status.st_mode)) {
    const off_t end = ::lseek(fd.get(), 0, SEEK_END);
    if (end < 0) return errno_error("find the size of a block device");
    return static_cast<u64>(end);
  }
  return static_cast<u64>(status.st_size);
}

Result<void> sync_file(const Fd& fd) {
  if (::fsync(fd.get()) != 0) return errno_error("fsync");
  return {};
}

Result<void> sync_directory(const std::string& path) {
  const Fd fd = TRY(open_file(path, O_RDONLY | O_DIRECTORY));
  TRY_CONTEXT(sync_file(fd), fmt::format("directory \"{}\"", path));
  return {};
}

Result<EventFd> EventFd::create() {
  Fd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd) return errno_error("eventfd");
  return EventFd(std::move(fd));
}

void EventFd::signal() const {
  // EAGAIN means that the count is at its limit: the reader has been told often enough.
  const u64 one = 1;
  CHECK(::write(fd_.get(), &one, sizeof one) == sizeof one || errno == EAGAIN);
}

void EventFd::take() const {
  u64 count = 0;
  CHECK(::read(fd_.get(), &count, sizeof count) == sizeof count || errno == EAGAIN);
}

Result<Mapping> Mapping::anonymous(u64 size_bytes) {
  void* data = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return errno_error("map {} bytes of memory", size_bytes);
  return Mapping(static_cast<u8*>(data), size_bytes);
}

Result<Mapping> Mapping::of_file(const Fd& fd, u64 size_bytes, int protection, int flags) {
  void* data = ::mmap(nullptr, size_bytes, protection, flags, fd.get(), 0);
  if (data == MAP_FAILED) return errno_error("map {} bytes of a file", size_bytes);
  return Mapping(static_cast<u8*>(data), size_bytes);
}

void Mapping::unmap() {
  if (data_ != nullptr) CHECK(::munmap(data_, size_) == 0);
  data_ = nullptr;
}

}  // namespace base
