#include "vmm/bench/workspace.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/statvfs.h>

#include <filesystem>
#include <span>

#include "vmm/base/fd.h"
#include "vmm/bench/dirty_pages_guest.h"
#include "vmm/bench/hello_guest.h"

namespace bench {
namespace {

// The guests of up to 8 GiB write 256 MiB at most; the peer's disks hold that once more.
constexpr u64 kRoomBytes = 2 * base::kGiB;

bool has_room(const char* directory) {
  struct statvfs status {};
  return ::statvfs(directory, &status) == 0 &&
         u64{status.f_bavail} * u64{status.f_frsize} >= kRoomBytes;
}

Result<void> write_guest(const std::string& path, std::span<const u8> bytes) {
  const base::Fd file = TRY(base::open_file(path, O_WRONLY | O_CREAT | O_EXCL));
  return base::write_all(file, bytes);
}

}  // namespace

Result<Workspace> Workspace::create() {
  const char* const chosen = ::getenv("TMPDIR");
  std::string parent = chosen != nullptr ? chosen : "/tmp";
  if (has_room("/dev/shm")) parent = "/dev/shm";
  std::string path = parent + "/quicksave-bench-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) return errno_error("make a directory in \"{}\"", parent);
  Workspace workspace(std::move(path));
  TRY(write_guest(workspace.dirty_pages_guest(), kDirtyPagesGuest));
  TRY(write_guest(workspace.hello_guest(), kHelloGuest));
  return workspace;
}

Result<Workspace> Workspace::create_on_disk() {
  std::string path = "/var/tmp/quicksave-bench-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) return errno_error("make a directory in \"/var/tmp\"");
  return Workspace(std::move(path));
}

Workspace::~Workspace() {
  if (path_.empty()) return;
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace bench
