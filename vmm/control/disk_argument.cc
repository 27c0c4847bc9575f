#include "vmm/control/disk_argument.h"

namespace control {
namespace {

constexpr const char* kForm =
    "--disk FILE,format=qcow2|raw[,mode=overlay|ro|persist][,backing=FILE:FORMAT][,backing-dir=DIR]";

// Splits at single commas; a doubled comma is one comma of the text.
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

std::string with_doubled_commas(std::string_view text) {
  std::string result;
  for (const char c : text) result.append(c == ',' ? 2 : 1, c);
  return result;
}

Result<DiskFormat> parse_format(std::string_view text) {
  if (text == "raw") return DiskFormat::raw;
  if (text == "qcow2") return DiskFormat::qcow2;
  return make_error(ErrorKind::usage, "format \"{}\" is not qcow2 or raw", text).with_hint(kForm);
}

Result<DiskMode> parse_mode(std::string_view text) {
  if (text == "overlay") return DiskMode::overlay;
  if (text == "ro") return DiskMode::ro;
  if (text == "persist") return DiskMode::persist;
  return make_error(ErrorKind::usage, "mode \"{}\" is not overlay, ro or persist", text)
      .with_hint(kForm);
}

Result<DiskArgument::Backing> parse_backing(std::string_view text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) {
    return make_error(ErrorKind::usage, "backing=\"{}\" is not FILE:FORMAT", text).with_hint(kForm);
  }
  return DiskArgument::Backing{std::string(text.substr(0, colon)),
                               TRY(parse_format(text.substr(colon + 1)))};
}

Result<void> take_option(DiskArgument& argument, const std::string& option) {
  const std::size_t equals = option.find('=');
  const std::string key = option.substr(0, equals);
  const std::string value = equals == std::string::npos ? "" : option.substr(equals + 1);
  if (value.empty()) {
    return make_error(ErrorKind::usage, "\"{}\" is not KEY=VALUE", option).with_hint(kForm);
  }
  if (key == "format") {
    argument.format = TRY(parse_format(value));
  } else if (key == "mode") {
    argument.mode = TRY(parse_mode(value));
  } else if (key == "backing") {
    argument.backing.push_back(TRY(parse_backing(value)));
  } else if (key == "backing-dir") {
    argument.backing_dir = value;
  } else {
    return make_error(ErrorKind::usage, "unknown key \"{}\"", key).with_hint(kForm);
  }
  return {};
}

}  // namespace

std::string_view name_of(DiskFormat format) {
  return format == DiskFormat::raw ? "raw" : "qcow2";
}

std::string_view name_of(DiskMode mode) {
  switch (mode) {
    case DiskMode::overlay: return "overlay";
    case DiskMode::ro: return "ro";
    case DiskMode::persist: return "persist";
  }
  return "";
}

Result<DiskArgument> parse_disk_argument(std::string_view text) {
  const std::vector<std::string> parts = split_at_commas(text);
  const std::string context = fmt::format("disk \"{}\"", parts[0]);
  if (parts[0].empty()) {
    return make_error(ErrorKind::usage, "disk \"{}\" names no file", text).with_hint(kForm);
  }
  DiskArgument argument;
  argument.file = parts[0];
  bool has_format = false;
  std::vector<std::string> seen;
  for (std::size_t i = 1; i < parts.size(); ++i) {
    const std::string key = parts[i].substr(0, parts[i].find('='));
    for (const std::string& earlier : seen) {
      if (key == earlier && key != "backing") {
        return make_error(ErrorKind::usage, "{}: \"{}\" is given twice", context, key)
            .with_hint(kForm);
      }
    }
    seen.push_back(key);
    has_format = has_format || key == "format";
    TRY_CONTEXT(take_option(argument, parts[i]), context);
  }
  if (!has_format) {
    return make_error(ErrorKind::usage, "{}: its format is not given, and is never guessed",
                      context)
        .with_hint(fmt::format("add ,format=qcow2 or ,format=raw to \"{}\"", text));
  }
  return argument;
}

std::string DiskArgument::text() const {
  std::string result =
      fmt::format("{},format={},mode={}", with_doubled_commas(file), name_of(format), name_of(mode));
  for (const Backing& layer : backing) {
    result +=
        fmt::format(",backing={}:{}", with_doubled_commas(layer.file), name_of(layer.format));
  }
  if (!backing_dir.empty()) {
    result += fmt::format(",backing-dir={}", with_doubled_commas(backing_dir));
  }
  return result;
}

void DiskArgument::make_absolute(const std::string& directory) {
  file = absolute_path(directory, file);
  for (Backing& layer : backing) layer.file = absolute_path(directory, layer.file);
  if (!backing_dir.empty()) backing_dir = absolute_path(directory, backing_dir);
}

std::string absolute_path(const std::string& directory, const std::string& path) {
  return path.starts_with('/') ? path : directory + "/" + path;
}

}  // namespace control
