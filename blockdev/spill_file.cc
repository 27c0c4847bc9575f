#include "blockdev/spill_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

namespace blockdev {

Result<base::Fd> open_spill_file(const std::string& directory) {
  Result<base::Fd> file = base::open_file(directory, O_TMPFILE | O_RDWR);
  // Which error says "not on this file system" depends on it (open(2), O_TMPFILE: EOPNOTSUPP,
  // EISDIR, ENOENT; FUSE has more), so all but a full disk are tried the other way.
  if (file || file.error().kind() == ErrorKind::no_space) return file;
  return open_unlinked_file(directory);
}

Result<base::Fd> open_unlinked_file(const std::string& directory) {
  std::string name = directory + "/quicksave-XXXXXX";
  base::Fd file(::mkostemp(name.data(), O_CLOEXEC));
  if (!file) return errno_error("make a file in \"{}\"", directory);
  if (::unlink(name.c_str()) != 0) return errno_error("unlink \"{}\"", name);
  return file;
}

}  // namespace blockdev
