#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "snapshot/manifest.h"
#include "vmm/base/fd.h"

namespace snapshot {

Result<BaseImage> BaseImage::identify(const std::string& path, const std::string& format) {
  // By name and not through an open file: a writer that replaced the file by rename is noticed.
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return errno_error("base image \"{}\"", path);
  BaseImage image{path, format, static_cast<u64>(status.st_size), 0, status.st_dev, status.st_ino};
  if (S_ISBLK(status.st_mode)) {
    const base::Fd device = TRY(base::open_file(path, O_RDONLY));
    image.size_bytes = TRY_CONTEXT(base::file_size(device), fmt::format("\"{}\"", path));
  } else if (S_ISREG(status.st_mode)) {
    image.mtime_ns = status.st_mtim.tv_sec * i64{1'000'000'000} + status.st_mtim.tv_nsec;
  } else {
    return make_error(ErrorKind::usage, "base image \"{}\" is neither a file nor a block device",
                      path);
  }
  return image;
}

Result<void> BaseImage::check_unchanged(std::string_view when) const {
  Result<BaseImage> found = identify(path, format);
  if (!found) {
    return std::move(found).error().with_hint("the snapshot needs the file: put it back as it was");
  }
  const BaseImage& now = *found;
  const auto refuse = [&](std::string_view what, const auto& then, const auto& present) {
    return make_error(ErrorKind::wrong_state, "base image \"{}\" changed {}: {} was {}, is {}",
                      path, when, what, then, present)
        .with_hint("put the file back as it was; a snapshot cannot be used over another disk");
  };
  if (now.size_bytes != size_bytes) return refuse("size", size_bytes, now.size_bytes);
  if (now.mtime_ns != mtime_ns) {
    const auto text = [](i64 ns) {
      return Timestamp{ns / 1'000'000'000, static_cast<u32>(ns % 1'000'000'000)}.to_string();
    };
    return refuse("modification time", text(mtime_ns), text(now.mtime_ns));
  }
  return {};
}

}  // namespace snapshot
