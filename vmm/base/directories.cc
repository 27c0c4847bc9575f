#include "vmm/base/directories.h"

#include <sys/stat.h>

#include "vmm/base/fd.h"

namespace base {
namespace {

bool is_directory(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

}  // namespace

Result<void> make_directories(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string parent = slash == 0 ? "/" : path.substr(0, slash);
  const bool has_parent = slash != std::string::npos && slash != 0;
  int failed = ::mkdir(path.c_str(), 0700);
  if (failed && errno == ENOENT && has_parent) {
    TRY(make_directories(parent));
    // Once more and no oftener: in /proc a name is missing though its parent is there.
    failed = ::mkdir(path.c_str(), 0700);
  }
  if (!failed) return sync_directory(has_parent ? parent : "/");
  const int mkdir_error = errno;
  if (mkdir_error == EEXIST && is_directory(path)) return {};
  return Error::from_errno(mkdir_error, fmt::format("create directory \"{}\"", path));
}

}  // namespace base
