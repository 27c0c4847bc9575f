// Owning handles: a file descriptor, an eventfd, a memory mapping. All move-only; all close on
// destruction. Every descriptor this program makes is close-on-exec.

#pragma once

#include <span>
#include <string>
#include <utility>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace base {

class Fd final {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~Fd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset();
  int release() { return std::exchange(fd_, -1); }
  Result<Fd> duplicate() const;

 private:
  int fd_ = -1;
};

// Opens with O_CLOEXEC added. `mode` counts only with O_CREAT.
Result<Fd> open_file(const std::string& path, int flags, u32 mode = 0600);
Result<Fd> open_file_at(const Fd& directory, const std::string& name, int flags, u32 mode = 0600);

// The whole range or an Error: short transfers and EINTR are continued; reading past the end of the
// file is an Error.
Result<void> read_exactly(const Fd& fd, std::span<u8> buffer, u64 offset);
Result<void> write_exactly(const Fd& fd, std::span<const u8> buffer, u64 offset);
Result<void> write_all(const Fd& fd, std::span<const u8> buffer);  // at the file position

// The whole file as a string. Refuses more than `limit_bytes` before reading.
Result<std::string> read_whole_file(const std::string& path, u64 limit_bytes);

Result<u64> file_size(const Fd& fd);
Result<void> sync_file(const Fd& fd);                  // fsync
Result<void> sync_directory(const std::string& path);  // fsync of the directory itself

class EventFd final {
 public:
  static Result<EventFd> create();

  void signal() const;
  // Takes the count, so that a poll stops reporting. Never blocks.
  void take() const;
  const Fd& fd() const { return fd_; }

 private:
  explicit EventFd(Fd fd) : fd_(std::move(fd)) {}
  Fd fd_;
};

class Mapping final {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    if (this != &other) {
      unmap();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }
  ~Mapping() { unmap(); }

  // Zero-filled, private, not reserved in swap.
  static Result<Mapping> anonymous(u64 size_bytes);
  // `fd` may be closed afterwards. `protection` and `flags` as for mmap(2).
  static Result<Mapping> of_file(const Fd& fd, u64 size_bytes, int protection, int flags);

  u8* data() const { return data_; }
  u64 size_bytes() const { return size_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  Mapping(u8* data, u64 size) : data_(data), size_(size) {}
  void unmap();

  u8* data_ = nullptr;
  u64 size_ = 0;
};

}  // namespace base
