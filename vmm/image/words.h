// What the verbs of `quicksave image` have in common: how an image, what lies below it and a new
// one are said on the command line.

#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "blockdev/disk.h"
#include "blockdev/image_chain.h"
#include "blockdev/image_copy.h"
#include "blockdev/qcow2_create.h"
#include "vmm/image/verbs.h"

namespace image {

using control::put;
using control::put_json;
using control::put_progress;
using control::report;
using control::warn;

// `option` is the one that should have said it: "-f".
Result<blockdev::ImageFormat> image_format_of(const std::string& file, const std::string& format,
                                              std::string_view option);

Result<blockdev::DiskSpec> disk_spec_of(const ImageOptions& options, std::string_view option);

// The chain for reading. What is odd about it is a warning.
Result<blockdev::ImageChain> open_chain(const blockdev::DiskSpec& spec);

// Refuses what a snapshot or the newest state of a VM's disk rests on.
Result<void> check_may_write(const std::string& file);

// An image's file for writing, locked; check_may_write() allows it.
Result<blockdev::ImageFile> open_file_to_write(const std::string& path,
                                               blockdev::ImageFormat format);

// The disk of an image for writing through to it, on the same terms.
Result<std::unique_ptr<blockdev::Disk>> open_to_write(blockdev::DiskSpec spec,
                                                      const blockdev::DiskOptions& options = {});

// The size of the disk in an image; what lies below it is not looked at.
Result<u64> disk_bytes_of(const blockdev::ImageFile& file);

// The images of a chain by the names that the user and the images gave them.
std::vector<std::string> names_of(const blockdev::DiskSpec& spec,
                                  const blockdev::ImageChain& chain);

// A name that stands inside an image is relative to the image's directory.
std::string full_backing_name(const std::string& image, const std::string& backing);

// Whether the path leads to that file.
bool is_file_at(const std::string& path, const blockdev::ImageIdentity& image);

// Whether tools would take it for a file's name.
Result<void> check_backing_name(const std::string& name);

// --- new images ---

// What -b, -F, -o and the size amount to.
struct NewImageWords {
  std::string size;
  std::string backing_file;
  std::string backing_format;
  std::vector<std::string> settings;
};
struct WantedImage {
  blockdev::ImageFormat format = blockdev::ImageFormat::raw;
  std::optional<u64> size_bytes;  // nothing: not said
  blockdev::qcow2::NewImage qcow2;
};
Result<WantedImage> wanted_image(blockdev::ImageFormat format, const NewImageWords& words);

// An empty file to write an image to, locked; removed again if nobody keeps it and it was not there
// before.
class TargetFile final {
 public:
  // `others` are images that are read meanwhile: the target is none of them.
  static Result<TargetFile> create(const std::string& path, blockdev::ImageFormat format,
                                   const std::vector<blockdev::ImageIdentity>& others);
  TargetFile(TargetFile&& other) noexcept = default;
  ~TargetFile();

  const base::Fd& fd() const { return file_.fd; }
  bool is_device() const { return is_device_; }
  // Makes its name durable.
  Result<void> keep();

 private:
  TargetFile() = default;

  std::string path_to_remove_;  // empty: stays
  std::string path_;
  blockdev::ImageFile file_;
  bool is_device_ = false;
};

// "    (12.34/100%)" on stderr, again and again on one line. Empty unless asked for.
blockdev::Progress progress_line(ShowProgress show);

}  // namespace image
