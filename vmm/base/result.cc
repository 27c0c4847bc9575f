#include "vmm/base/result.h"

#include <cstring>

namespace {

ErrorKind kind_of_errno(int error_number) {
  switch (error_number) {
    case ENOENT: return ErrorKind::not_found;
    case EEXIST: return ErrorKind::exists;
    case EBUSY: return ErrorKind::busy;
    case EACCES:
    case EPERM: return ErrorKind::denied;
    case ENOSPC:
    case EDQUOT:
    case EFBIG: return ErrorKind::no_space;
    default: return ErrorKind::failed;
  }
}

}  // namespace

Error Error::from_errno(int error_number, std::string_view what) {
  char buffer[128];
  return Error(kind_of_errno(error_number),
               fmt::format("{}: {}", what, strerror_r(error_number, buffer, sizeof buffer)));
}
