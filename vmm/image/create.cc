// `quicksave image create`, and what -o says of a new image.

#include <unistd.h>

#include <bit>

#include "blockdev/block_backend.h"
#include "vmm/base/ranges.h"
#include "vmm/control/size_text.h"
#include "vmm/image/words.h"

namespace image {
namespace {

using blockdev::ImageFile;
using blockdev::ImageFormat;
using blockdev::qcow2::L2Entries;
using control::format_size;
using control::parse_size;

template <class... Args>
Error usage(fmt::format_string<Args...> format, Args&&... args) {
  return make_error(ErrorKind::usage, format, std::forward<Args>(args)...);
}

Result<bool> parse_switch(std::string_view key, std::string_view value) {
  if (value == "on") return true;
  if (value == "off") return false;
  return usage("-o {}={}: neither on nor off", key, value);
}

Result<void> take_said_twice(std::string& to, std::string_view name, const std::string& value) {
  if (!to.empty()) return usage("the {} is given twice", name);
  if (value.empty()) return usage("the {} is empty", name);
  to = value;
  return {};
}

Result<void> take_qcow2_setting(const std::string& key, const std::string& value,
                                NewImageWords& words, blockdev::qcow2::NewImage& image) {
  if (key == "backing_file") return take_said_twice(words.backing_file, "backing file", value);
  if (key == "backing_fmt") {
    return take_said_twice(words.backing_format, "backing file's format", value);
  }
  if (key == "cluster_size") {
    const u64 bytes = TRY(parse_size("-o cluster_size", value, 1));
    if (!base::is_power_of_two(bytes) || bytes >> 32 != 0) {
      return usage("-o cluster_size={}: must be a power of two between 512 and 2M", value);
    }
    image.cluster_bits = static_cast<u32>(std::countr_zero(bytes));
    return {};
  }
  if (key == "extended_l2") {
    const bool is_on = TRY(parse_switch(key, value));
    image.l2_entries = is_on ? L2Entries::extended : L2Entries::standard;
    return {};
  }
  if (key == "compat") {
    if (value == "1.1" || value == "v3") return {};
    return make_error(ErrorKind::unsupported, "-o compat={}: only version 3 is written", value)
        .with_hint("compat=1.1");
  }
  if (key == "lazy_refcounts") {
    const bool is_on = TRY(parse_switch(key, value));
    if (!is_on) return {};
    return make_error(ErrorKind::unsupported,
                      "-o lazy_refcounts=on: an image that is not closed would have to be repaired")
        .with_hint("lazy_refcounts=off");
  }
  return make_error(ErrorKind::unsupported, "-o {}: this option is not supported", key)
      .with_hint(
          "size, backing_file, backing_fmt, cluster_size, extended_l2, compat=1.1, "
          "lazy_refcounts=off");
}

Result<void> take_setting(ImageFormat format, std::string_view part, NewImageWords& words,
                          blockdev::qcow2::NewImage& image) {
  const std::size_t equals = part.find('=');
  if (equals == std::string_view::npos) return usage("-o {}: not key=value", part);
  const std::string key(part.substr(0, equals));
  const std::string value(part.substr(equals + 1));
  if (key == "size") return take_said_twice(words.size, "size", value);
  if (format == ImageFormat::qcow2) return take_qcow2_setting(key, value, words, image);
  return make_error(ErrorKind::unsupported, "-o {}: this option is not supported for raw images",
                    key)
      .with_hint("size");
}

}  // namespace

Result<WantedImage> wanted_image(ImageFormat format, const NewImageWords& given) {
  WantedImage wanted;
  wanted.format = format;
  NewImageWords words = given;
  for (const std::string& setting : given.settings) {
    for (const std::string& part : blockdev::split_at_commas(setting)) {
      TRY(take_setting(format, part, words, wanted.qcow2));
    }
  }
  if (!words.size.empty()) {
    const u64 bytes = TRY(parse_size("size", words.size, 1));
    if (bytes == 0 || bytes > blockdev::kMaxDiskBytes) {
      return usage("size {}: a disk has between 512 bytes and {}", words.size,
                   format_size(blockdev::kMaxDiskBytes));
    }
    wanted.size_bytes = base::align_up(bytes, blockdev::kSectorBytes);
  }
  if (words.backing_file.empty()) {
    if (!words.backing_format.empty()) return usage("-F without a backing file");
    return wanted;
  }
  if (format == ImageFormat::raw) return usage("a raw image has no backing file");
  TRY(check_backing_name(words.backing_file));
  TRY(image_format_of(words.backing_file, words.backing_format, "-F"));
  wanted.qcow2.backing_name = words.backing_file;
  wanted.qcow2.backing_format = words.backing_format;
  return wanted;
}

Result<int> create(const CreateOptions& options) {
  const ImageFormat format = TRY(image_format_of(options.file, options.format, "-f"));
  WantedImage wanted = TRY(wanted_image(
      format, {options.size, options.backing_file, options.backing_format, options.settings}));
  std::vector<ImageFile> backing;  // open, and so locked, until the image is there
  std::vector<blockdev::ImageIdentity> others;
  const std::string& name = wanted.qcow2.backing_name;
  if (!name.empty() && options.backing_exists == BackingExists::checked) {
    const ImageFormat below = TRY(blockdev::parse_image_format(wanted.qcow2.backing_format));
    backing.push_back(TRY_CONTEXT(
        blockdev::open_image_file(full_backing_name(options.file, name), below), "backing file"));
    others.push_back(backing.back().identity);
    if (!wanted.size_bytes) wanted.size_bytes = TRY(disk_bytes_of(backing.back()));
  }
  if (!wanted.size_bytes) {
    return usage("the size of \"{}\" is not given", options.file)
        .with_hint("quicksave image create -f FORMAT FILE SIZE");
  }
  wanted.qcow2.size_bytes = *wanted.size_bytes;
  if (format == ImageFormat::qcow2) TRY(blockdev::qcow2::check_new_image(wanted.qcow2));
  TargetFile target = TRY(TargetFile::create(options.file, format, others));
  if (target.is_device())
    return usage("\"{}\" is a device: there is nothing to make", options.file);
  if (format == ImageFormat::qcow2) {
    TRY(blockdev::qcow2::create_image(target.fd(), wanted.qcow2));
  } else if (::ftruncate(target.fd().get(), static_cast<off_t>(*wanted.size_bytes)) != 0) {
    return errno_error("make \"{}\" {} bytes long", options.file, *wanted.size_bytes);
  }
  TRY(base::sync_file(target.fd()));
  TRY(target.keep());
  return kExitDone;
}

}  // namespace image
