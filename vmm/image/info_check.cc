// `quicksave image info` and `check`: what an image is, and whether its tables agree.

#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "blockdev/qcow2_check.h"
#include "blockdev/qcow2_header.h"
#include "blockdev/qcow2_repair.h"
#include "vmm/base/ranges.h"
#include "vmm/image/words.h"

namespace image {
namespace {

using blockdev::DiskSpec;
using blockdev::ImageFile;
using blockdev::ImageFormat;
using blockdev::qcow2::CheckReport;
using blockdev::qcow2::RepairReport;
using blockdev::qcow2::RepairScope;
using nlohmann::json;

constexpr int kExitCorrupt = 2;
constexpr int kExitLeaks = 3;
constexpr int kExitNothingToCheck = 63;

// "196 KiB", with three digits and the units changing at 1000, as qemu-img writes sizes.
std::string three_digits(u64 bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1000 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
  return fmt::format("{:.3g} {}", value, kUnits[unit]);
}

// --- info ---

json specific_of(const blockdev::qcow2::Header& header) {
  json data = {{"compat", header.version == 2 ? "0.10" : "1.1"},
               {"compression-type",
                header.compression == blockdev::qcow2::Compression::zstd ? "zstd" : "zlib"},
               {"refcount-bits", u64{1} << header.wire.refcount_order}};
  if (header.version > 2) {
    data["lazy-refcounts"] =
        (header.wire.compatible_features & blockdev::qcow2::kLazyRefcounts) != 0;
    data["corrupt"] = (header.wire.incompatible_features & blockdev::qcow2::kCorrupt) != 0;
    data["extended-l2"] = header.has_extended_l2;
  }
  return {{"type", "qcow2"}, {"data", data}};
}

// `path` is opened, `name` is shown.
Result<json> info_of(const std::string& path, const std::string& name, ImageFormat format) {
  const ImageFile file = TRY(blockdev::open_image_file(path, format));
  struct stat status {};
  if (::fstat(file.fd.get(), &status) != 0) return errno_error("stat \"{}\"", name);
  json value = {{"filename", name},
                {"format", blockdev::image_format_name(format)},
                {"actual-size", static_cast<u64>(status.st_blocks) * 512},
                {"dirty-flag", false}};
  if (format == ImageFormat::raw) {
    value["virtual-size"] = base::align_up(file.identity.size_bytes, 512);
    return value;
  }
  const blockdev::qcow2::Header header =
      TRY_CONTEXT(blockdev::qcow2::read_header(file.fd, file.identity.size_bytes),
                  fmt::format("image \"{}\"", name));
  value["virtual-size"] = header.size_bytes;
  value["cluster-size"] = header.cluster_bytes();
  value["dirty-flag"] = (header.wire.incompatible_features & blockdev::qcow2::kDirty) != 0;
  value["format-specific"] = specific_of(header);
  if (!header.backing_name.empty()) {
    value["backing-filename"] = header.backing_name;
    value["full-backing-filename"] = full_backing_name(name, header.backing_name);
    if (!header.backing_format.empty()) value["backing-filename-format"] = header.backing_format;
  }
  for (const std::string& text : header.warnings) warn(fmt::format("\"{}\": {}", name, text));
  return value;
}

std::string info_as_text(const json& info) {
  const auto text_of = [&](const char* key) { return info.at(key).get<std::string>(); };
  std::string text =
      fmt::format("image: {}\nfile format: {}\n", text_of("filename"), text_of("format"));
  const u64 size = info.at("virtual-size").get<u64>();
  text += fmt::format("virtual size: {} ({} bytes)\n", three_digits(size), size);
  text += fmt::format("disk size: {}\n", three_digits(info.at("actual-size").get<u64>()));
  if (info.contains("cluster-size")) {
    text += fmt::format("cluster_size: {}\n", info.at("cluster-size").get<u64>());
  }
  if (info.at("dirty-flag").get<bool>()) text += "cleanly shut down: no\n";
  if (info.contains("backing-filename")) {
    text += fmt::format("backing file: {}\n", text_of("backing-filename"));
  }
  if (info.contains("backing-filename-format")) {
    text += fmt::format("backing file format: {}\n", text_of("backing-filename-format"));
  }
  if (!info.contains("format-specific")) return text;
  text += "Format specific information:\n";
  for (const auto& [key, item] : info.at("format-specific").at("data").items()) {
    std::string words = key;
    std::replace(words.begin(), words.end(), '-', ' ');
    text += fmt::format("    {}: {}\n", words,
                        item.is_string() ? item.get<std::string>() : item.dump());
  }
  return text;
}

// The chain is opened as for a VM first: the same rules say which names are followed.
Result<json> chain_info(const DiskSpec& spec) {
  const blockdev::ImageChain chain = TRY(open_chain(spec));
  const std::vector<std::string> names = names_of(spec, chain);
  json images = json::array();
  for (std::size_t i = 0; i < chain.images.size(); ++i) {
    const blockdev::ImageIdentity& image = chain.images[i];
    images.push_back(TRY(info_of(i == 0 ? spec.path : image.path, names[i], image.format)));
  }
  return images;
}

// --- check ---

json to_json(const ImageOptions& options, const RepairReport& repaired) {
  const CheckReport& report = repaired.after;
  json value = {{"filename", options.file},
                {"format", options.format},
                {"check-errors", report.check_errors}};
  const std::pair<const char*, u64> numbers[] = {
      {"corruptions-fixed", repaired.corruptions_fixed},
      {"leaks-fixed", repaired.leaks_fixed},
      {"corruptions", report.corruptions},
      {"leaks", report.leaks},
      {"image-end-offset", report.image_end_offset},
      {"total-clusters", report.total_clusters},
      {"allocated-clusters", report.allocated_clusters},
      {"fragmented-clusters", report.fragmented_clusters},
      {"compressed-clusters", report.compressed_clusters},
  };
  // As qemu-img, which leaves zeros out.
  for (const auto& [key, number] : numbers) {
    if (number != 0) value[key] = number;
  }
  return value;
}

std::string check_as_text(const RepairReport& repaired) {
  const CheckReport& report = repaired.after;
  std::string text;
  if (repaired.leaks_fixed + repaired.corruptions_fixed != 0) {
    text = fmt::format("repaired: {} leaked clusters, {} corruptions\n", repaired.leaks_fixed,
                       repaired.corruptions_fixed);
  }
  for (const std::string& finding : report.findings) text += finding + "\n";
  const u64 found = report.corruptions + report.leaks;
  if (found > report.findings.size()) {
    text += fmt::format("... and {} more\n", found - report.findings.size());
  }
  if (found + report.check_errors == 0) text += "no errors\n";
  if (report.corruptions != 0) text += fmt::format("{} corruptions\n", report.corruptions);
  if (report.leaks != 0) text += fmt::format("{} leaked clusters\n", report.leaks);
  if (report.check_errors != 0) {
    text += fmt::format("{} clusters whose refcount cannot be read\n", report.check_errors);
  }
  text += fmt::format("{} of {} clusters allocated, {} fragmented, {} compressed\n",
                      report.allocated_clusters, report.total_clusters, report.fragmented_clusters,
                      report.compressed_clusters);
  return text + fmt::format("image end offset: {}\n", report.image_end_offset);
}

int status_of(const CheckReport& report) {
  if (report.check_errors != 0) return kExitFailed;
  if (report.corruptions != 0) return kExitCorrupt;
  return report.leaks != 0 ? kExitLeaks : kExitDone;
}

}  // namespace

Result<int> info(const ImageOptions& options, WithChain with_chain, Output output) {
  const DiskSpec spec = TRY(disk_spec_of(options, "-f"));
  const bool is_chain = with_chain == WithChain::yes;
  if (!is_chain && (!spec.backing.empty() || !spec.backing_dir.empty())) {
    return make_error(ErrorKind::usage, "--backing and --backing-dir belong to --backing-chain");
  }
  const json info =
      is_chain ? TRY(chain_info(spec)) : TRY(info_of(spec.path, spec.path, spec.format));
  if (output == Output::json) {
    put_json(info);
  } else if (!is_chain) {
    put(info_as_text(info));
  } else {
    std::string text;
    for (const json& image : info) text += (text.empty() ? "" : "\n") + info_as_text(image);
    put(text);
  }
  return kExitDone;
}

Result<int> check(const ImageOptions& options, const std::string& repair, Output output) {
  const ImageFormat format = TRY(image_format_of(options.file, options.format, "-f"));
  if (format == ImageFormat::raw) {
    report(make_error(ErrorKind::unsupported, "a raw image has nothing to check"));
    return kExitNothingToCheck;
  }
  RepairReport found;
  const std::string context = fmt::format("check \"{}\"", options.file);
  if (repair.empty()) {
    const ImageFile file = TRY(blockdev::open_image_file(options.file, format));
    found.after = TRY_CONTEXT(blockdev::qcow2::check_image(file.fd), context);
  } else {
    const ImageFile file = TRY(open_file_to_write(options.file, format));
    const auto scope = repair == "all" ? RepairScope::all : RepairScope::leaks;
    found = TRY_CONTEXT(blockdev::qcow2::repair_image(file.fd, scope), context);
  }
  if (output == Output::json) {
    put_json(to_json(options, found));
  } else {
    put(check_as_text(found));
  }
  return status_of(found.after);
}

}  // namespace image
