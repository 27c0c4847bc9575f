#include "blockdev/direct_engine.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>

#include "vmm/base/ranges.h"

namespace blockdev {
namespace {

bool is_whole_pages(const IoOperation& operation) {
  if (operation.kind != IoKind::read && operation.kind != IoKind::write) return false;
  return base::is_aligned(operation.offset, kDirectIoBytes) &&
         std::ranges::all_of(operation.buffers, [](const iovec& buffer) {
           return base::is_aligned(reinterpret_cast<u64>(buffer.iov_base) | buffer.iov_len,
                                   kDirectIoBytes);
         });
}

base::Fd open_directly(int fd) {
  const int access = ::fcntl(fd, F_GETFL) & O_ACCMODE;
  return base::Fd(
      ::open(fmt::format("/proc/self/fd/{}", fd).c_str(), access | O_DIRECT | O_CLOEXEC));
}

}  // namespace

Result<void> check_direct_io(const std::string& path) {
  struct statx status {};
  if (::statx(AT_FDCWD, path.c_str(), 0, STATX_DIOALIGN, &status) != 0) {
    return errno_error("stat \"{}\"", path);
  }
  const u32 alignment = std::max(status.stx_dio_mem_align, status.stx_dio_offset_align);
  const bool is_there = (status.stx_mask & STATX_DIOALIGN) != 0 && status.stx_dio_mem_align != 0;
  if (is_there && alignment <= kDirectIoBytes) return {};
  return make_error(ErrorKind::unsupported, "the file system of \"{}\" has no direct I/O", path);
}

std::optional<int> DirectEngine::try_now(const IoOperation& operation) {
  if (direct_fd(operation) >= 0) return std::nullopt;  // it waits for a device
  return below_->try_now(operation);
}

void DirectEngine::submit(const IoOperation& operation) {
  IoOperation passed = operation;
  if (const int fd = direct_fd(operation); fd >= 0) passed.fd = fd;
  below_->submit(passed);
}

int DirectEngine::direct_fd(const IoOperation& operation) {
  if (!is_whole_pages(operation)) return -1;
  const auto found = direct_.find(operation.fd);
  if (found != direct_.end()) return found->second.get();
  return direct_.emplace(operation.fd, open_directly(operation.fd)).first->second.get();
}

}  // namespace blockdev
