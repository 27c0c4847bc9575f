#include "vmm/image/words.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <memory>

#include "blockdev/qcow2_header.h"
#include "blockdev/qcow2_image.h"
#include "blockdev/raw_image.h"
#include "snapshot/store.h"
#include "vmm/control/vm_directory.h"

namespace image {
namespace {

using blockdev::DiskSpec;
using blockdev::ImageChain;
using blockdev::ImageFormat;
using blockdev::ImageIdentity;

// In the words of these verbs, not in those of --disk.
Error with_backing_hint(Error error) {
  if (error.hint().find("backing=") == std::string::npos) return error;
  return std::move(error).with_hint(
      "--backing FILE:FORMAT says where it is; or --backing-dir DIR lets names be followed");
}

}  // namespace

Result<ImageFormat> image_format_of(const std::string& file, const std::string& format,
                                    std::string_view option) {
  const std::string hint = fmt::format("{} qcow2 or {} raw", option, option);
  if (format.empty()) {
    return make_error(ErrorKind::usage, "the format of \"{}\" is not given", file)
        .with_hint(hint +
                   "; formats are never guessed, because a guest can make a raw disk look like a "
                   "qcow2 image");
  }
  if (format != "raw" && format != "qcow2") {
    return make_error(ErrorKind::usage, "format \"{}\" is not known", format).with_hint(hint);
  }
  return blockdev::parse_image_format(format);
}

Result<DiskSpec> disk_spec_of(const ImageOptions& options, std::string_view option) {
  DiskSpec spec;
  spec.path = options.file;
  spec.format = TRY(image_format_of(options.file, options.format, option));
  spec.mode = blockdev::DiskMode::ro;
  spec.backing_dir = options.backing_dir;
  for (const std::string& text : options.backing) {
    const std::size_t colon = text.rfind(':');
    if (colon == std::string::npos || colon == 0) {
      return make_error(ErrorKind::usage, "--backing \"{}\" does not say the format", text)
          .with_hint("--backing FILE:qcow2 or --backing FILE:raw");
    }
    const ImageFormat format = TRY(blockdev::parse_image_format(text.substr(colon + 1)));
    spec.backing.push_back({text.substr(0, colon), format});
  }
  return spec;
}

namespace {

// A name is followed from --backing-dir; qemu-img follows it from beside the image. Where these are
// two files, only the user knows which one is meant.
Result<void> check_one_is_meant(const DiskSpec& spec, const ImageChain& chain) {
  const std::size_t followed = spec.backing.size() + 1;
  if (chain.images.size() <= followed) return {};
  const std::string& above = followed == 1 ? spec.path : spec.backing.back().path;
  const auto& image = static_cast<const blockdev::Qcow2Image&>(*chain.layers[followed - 1]);
  const std::string beside = full_backing_name(above, image.header().backing_name);
  const ImageIdentity& inside = chain.images[followed];
  if (::access(beside.c_str(), F_OK) != 0 || is_file_at(beside, inside)) return {};
  return make_error(ErrorKind::usage,
                    "\"{}\" names \"{}\", which lies beside it and in --backing-dir: two files",
                    above, image.header().backing_name)
      .with_hint(fmt::format("--backing {}:{} if that is the one", inside.path,
                             blockdev::image_format_name(inside.format)));
}

}  // namespace

Result<ImageChain> open_chain(const DiskSpec& spec) {
  Result<ImageChain> chain = blockdev::open_image_chain(spec);
  if (!chain) return with_backing_hint(std::move(chain).error());
  TRY(check_one_is_meant(spec, *chain));
  for (const std::string& text : chain->warnings) warn(text);
  return chain;
}

Result<void> check_may_write(const std::string& file) {
  const control::Home home = TRY(control::Home::from_environment());
  // Where there never was a VM, nothing is made for the asking.
  if (::access(home.snapshots().c_str(), F_OK) != 0) return {};
  const auto store = TRY(snapshot::SnapshotStore::open(home.snapshots(), home.vms()));
  return store.check_may_write(file);
}

// Before and after: a snapshot may come until the lock is held.
Result<blockdev::ImageFile> open_file_to_write(const std::string& path, ImageFormat format) {
  TRY(check_may_write(path));
  blockdev::ImageFile file = TRY(blockdev::open_image_file_for_writing(path, format));
  TRY(check_may_write(path));
  return file;
}

Result<std::unique_ptr<blockdev::Disk>> open_to_write(DiskSpec spec,
                                                      const blockdev::DiskOptions& options) {
  TRY(check_may_write(spec.path));
  if (const Result<ImageChain> chain = blockdev::open_image_chain(spec); chain) {
    TRY(check_one_is_meant(spec, *chain));
  }
  spec.mode = blockdev::DiskMode::persist;
  Result<std::unique_ptr<blockdev::Disk>> disk = blockdev::open_disk(spec, options);
  if (!disk) return with_backing_hint(std::move(disk).error());
  TRY(check_may_write(spec.path));
  for (const std::string& text : (*disk)->warnings) warn(text);
  return disk;
}

bool is_file_at(const std::string& path, const ImageIdentity& image) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && status.st_dev == image.device &&
         status.st_ino == image.inode;
}

std::string full_backing_name(const std::string& image, const std::string& backing) {
  const std::size_t slash = image.rfind('/');
  if (backing.starts_with('/') || slash == std::string::npos) return backing;
  return image.substr(0, slash + 1) + backing;
}

std::vector<std::string> names_of(const DiskSpec& spec, const ImageChain& chain) {
  std::vector<std::string> names = {spec.path};
  for (std::size_t i = 1; i < chain.images.size(); ++i) {
    if (i <= spec.backing.size()) {
      names.push_back(spec.backing[i - 1].path);
      continue;
    }
    // Only a qcow2 image has something below it.
    const auto& above = static_cast<const blockdev::Qcow2Image&>(*chain.layers[i - 1]);
    const std::string said = full_backing_name(names.back(), above.header().backing_name);
    const bool is_it = is_file_at(said, chain.images[i]);
    names.push_back(is_it ? said : chain.images[i].path);
  }
  return names;
}

// QEMU takes "word:rest" for a protocol.
Result<void> check_backing_name(const std::string& name) {
  const std::size_t colon = name.find(':');
  if (colon != std::string::npos && name.find('/') > colon) {
    return make_error(ErrorKind::usage,
                      "backing file \"{}\": tools take what stands before the colon for a protocol",
                      name)
        .with_hint(fmt::format("./{}", name));
  }
  return {};
}

Result<u64> disk_bytes_of(const blockdev::ImageFile& file) {
  if (file.identity.format == ImageFormat::raw) {
    base::Fd fd = TRY(file.fd.duplicate());
    const auto image = TRY(blockdev::RawImage::create(std::move(fd)));
    return image->size_bytes();
  }
  const auto header = TRY(blockdev::qcow2::read_header(file.fd, file.identity.size_bytes));
  return header.size_bytes;
}

// --- TargetFile ---

Result<TargetFile> TargetFile::create(const std::string& path, ImageFormat format,
                                      const std::vector<ImageIdentity>& others) {
  for (const ImageIdentity& other : others) {
    if (!is_file_at(path, other)) continue;
    return make_error(ErrorKind::usage, "\"{}\" is read for it and cannot be its own target", path);
  }
  TargetFile target;
  target.path_ = path;
  const base::Fd made(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!made && errno != EEXIST) return errno_error("make \"{}\"", path);
  if (made) target.path_to_remove_ = path;
  target.file_ = TRY(open_file_to_write(path, format));
  struct stat status {};
  if (::fstat(target.fd().get(), &status) != 0) return errno_error("stat \"{}\"", path);
  target.is_device_ = S_ISBLK(status.st_mode);
  if (!target.is_device_ && ::ftruncate(target.fd().get(), 0) != 0) {
    return errno_error("empty \"{}\"", path);
  }
  return target;
}

TargetFile::~TargetFile() {
  if (!path_to_remove_.empty()) ::unlink(path_to_remove_.c_str());
}

Result<void> TargetFile::keep() {
  path_to_remove_.clear();
  const std::size_t slash = path_.rfind('/');
  return base::sync_directory(slash == std::string::npos ? "." : path_.substr(0, slash + 1));
}

// --- progress ---

blockdev::Progress progress_line(ShowProgress show) {
  if (show == ShowProgress::no) return {};
  using Clock = std::chrono::steady_clock;
  const auto last = std::make_shared<Clock::time_point>();
  return [last](u64 done, u64 total) {
    const Clock::time_point now = Clock::now();
    if (done != total && now - *last < std::chrono::milliseconds(100)) return;
    *last = now;
    const double percent = 100.0 * static_cast<double>(done) / static_cast<double>(total);
    put_progress(fmt::format("    ({:.2f}/100%){}", percent, done == total ? "\n" : "\r"));
  };
}

}  // namespace image
