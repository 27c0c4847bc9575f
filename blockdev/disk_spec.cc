#include "blockdev/disk_spec.h"

#include <optional>

namespace blockdev {
namespace {

constexpr std::string_view kUsage =
    "FILE,format=qcow2|raw[,mode=overlay|persist|ro][,backing=FILE:FORMAT]...[,backing-dir=DIR], "
    "a comma in a name doubled";

template <class... Args>
Error usage(fmt::format_string<Args...> format, Args&&... args) {
  return make_error(ErrorKind::usage, format, std::forward<Args>(args)...)
      .with_hint(std::string(kUsage));
}

Result<BackingSpec> parse_backing(std::string_view value) {
  const std::size_t colon = value.rfind(':');
  if (colon == std::string_view::npos || colon == 0) {
    return usage("backing={} does not say the format: backing=FILE:qcow2 or backing=FILE:raw",
                 value);
  }
  const ImageFormat format = TRY(parse_image_format(value.substr(colon + 1)));
  return BackingSpec{std::string(value.substr(0, colon)), format};
}

Result<DiskMode> parse_mode(std::string_view value) {
  if (value == "overlay") return DiskMode::overlay;
  if (value == "persist") return DiskMode::persist;
  if (value == "ro") return DiskMode::ro;
  return usage("mode={} (overlay, persist or ro)", value);
}

struct Given {
  std::optional<ImageFormat> format;
  std::optional<DiskMode> mode;
};

Result<void> take_key(std::string_view key, std::string_view value, Given& given, DiskSpec& spec) {
  if (key == "format") {
    if (given.format) return usage("format= is given twice");
    given.format = TRY(parse_image_format(value));
  } else if (key == "mode") {
    if (given.mode) return usage("mode= is given twice");
    given.mode = TRY(parse_mode(value));
  } else if (key == "backing") {
    spec.backing.push_back(TRY(parse_backing(value)));
  } else if (key == "backing-dir") {
    if (!spec.backing_dir.empty()) return usage("backing-dir= is given twice");
    if (value.empty()) return usage("backing-dir= names no directory");
    spec.backing_dir = value;
  } else {
    return usage("unknown key \"{}\"", key);
  }
  return {};
}

}  // namespace

Result<DiskSpec> parse_disk_spec(std::string_view text) {
  const std::string context = fmt::format("disk \"{}\"", text);
  const std::vector<std::string> parts = split_at_commas(text);
  DiskSpec spec;
  spec.path = parts.front();
  if (spec.path.empty()) return usage("disk \"{}\" names no file", text);
  Given given;
  for (std::size_t i = 1; i < parts.size(); ++i) {
    const std::string& part = parts[i];
    const std::size_t equals = part.find('=');
    if (equals == std::string::npos) {
      return usage("{}: \"{}\" is not key=value", context, part);
    }
    TRY_CONTEXT(take_key(std::string_view(part).substr(0, equals),
                         std::string_view(part).substr(equals + 1), given, spec),
                context);
  }
  if (!given.format) {
    return make_error(ErrorKind::usage, "{}: the format is missing", context)
        .with_hint(
            "add ,format=qcow2 or ,format=raw (see qemu-img info); formats are never guessed, "
            "because a guest can make a raw disk look like a qcow2 image");
  }
  spec.format = *given.format;
  spec.mode = given.mode.value_or(DiskMode::overlay);
  return spec;
}

std::string format_disk_spec(const DiskSpec& spec) {
  std::string text = fmt::format("{},format={},mode={}", doubled_commas(spec.path),
                                 image_format_name(spec.format), disk_mode_name(spec.mode));
  for (const BackingSpec& backing : spec.backing) {
    text += fmt::format(",backing={}:{}", doubled_commas(backing.path),
                        image_format_name(backing.format));
  }
  if (!spec.backing_dir.empty()) {
    text += fmt::format(",backing-dir={}", doubled_commas(spec.backing_dir));
  }
  return text;
}

std::vector<std::string> split_at_commas(std::string_view text) {
  std::vector<std::string> parts(1);
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != ',') {
      parts.back() += text[i];
    } else if (i + 1 < text.size() && text[i + 1] == ',') {
      parts.back() += ',';
      ++i;
    } else {
      parts.emplace_back();
    }
  }
  return parts;
}

std::string doubled_commas(std::string_view text) {
  std::string out;
  for (const char c : text) out += c == ',' ? std::string(",,") : std::string(1, c);
  return out;
}

Result<ImageFormat> parse_image_format(std::string_view name) {
  if (name == "raw") return ImageFormat::raw;
  if (name == "qcow2") return ImageFormat::qcow2;
  return usage("format \"{}\" is not known (qcow2 or raw)", name);
}

std::string_view image_format_name(ImageFormat format) {
  return format == ImageFormat::raw ? "raw" : "qcow2";
}

std::string_view disk_mode_name(DiskMode mode) {
  switch (mode) {
    case DiskMode::overlay: return "overlay";
    case DiskMode::persist: return "persist";
    case DiskMode::ro: return "ro";
  }
  return "unknown";
}

}  // namespace blockdev
