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
  if (::mkdir(path.c_str(), 0700) == 0) return sync_directory(has_parent ? parent : "/");
  const int mkdir_error = errno;
  if (mkdir_error == EEXIST && is_directory(path)) return {};
  if (mkdir_error != ENOENT || !has_parent) {
    return Error::from_errno(mkdir_error, fmt::format("create directory \"{}\"", path));
  }
  TRY(make_directories(parent));
  return make_directories(path);
}

}  // namespace base
