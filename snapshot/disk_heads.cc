#include "snapshot/disk_heads.h"

#include <stdio.h>
#include <unistd.h>

#include "snapshot/store_files.h"
#include "snapshot/strict_json.h"

namespace snapshot {
namespace {

using nlohmann::json;

constexpr u64 kRecordVersion = 1;
constexpr u64 kMaximumHeads = 64;
constexpr u64 kMaximumFrozen = 1024;

Result<DiskHead> read_head(const json& value, const std::string& place) {
  JsonObject object = TRY(JsonObject::of(value, place));
  DiskHead head;
  head.file = TRY(object.text("file"));
  TRY_CONTEXT(check_plain_name("file name", head.file), object.place_of("file"));
  for (const json& name : *TRY(object.array("frozen", kMaximumFrozen))) {
    if (!name.is_string()) {
      return make_error(ErrorKind::corrupt, "{} holds what is no string",
                        object.place_of("frozen"));
    }
    head.frozen.push_back(name.get<std::string>());
    TRY_CONTEXT(check_plain_name("file name", head.frozen.back()), object.place_of("frozen"));
  }
  const json* const below = TRY(object.object("disk"));
  head.below = TRY(Disk::from_json(*below, object.place_of("disk")));
  TRY(object.finish());
  return head;
}

Result<std::vector<DiskHead>> parse(const std::string& text) {
  const json document = TRY(parse_json(text));
  JsonObject object = TRY(JsonObject::of(document, ""));
  const u64 version = TRY(object.number("version"));
  if (version != kRecordVersion) {
    return make_error(ErrorKind::unsupported, "format version {}; this program reads version {}",
                      version, kRecordVersion);
  }
  const json* const array = TRY(object.array("heads", kMaximumHeads));
  TRY(object.finish());
  std::vector<DiskHead> heads;
  for (std::size_t i = 0; i < array->size(); ++i) {
    heads.push_back(TRY(read_head((*array)[i], fmt::format("heads[{}]", i))));
  }
  return heads;
}

}  // namespace

Result<void> write_disk_heads(const std::string& vm_directory, const std::vector<DiskHead>& heads) {
  json array = json::array();
  for (const DiskHead& head : heads) {
    array.push_back({{"file", head.file}, {"frozen", head.frozen}, {"disk", head.below.to_json()}});
  }
  const json document = {{"version", kRecordVersion}, {"heads", std::move(array)}};
  const std::string text = document.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
  return replace_file(vm_directory, kDiskHeadsFile, text);
}

Result<std::vector<DiskHead>> read_disk_heads(const std::string& vm_directory) {
  const std::string path = vm_directory + "/" + kDiskHeadsFile;
  const Result<std::string> text = base::read_whole_file(path, kMaximumManifestBytes);
  if (!text && text.error().kind() == ErrorKind::not_found) return std::vector<DiskHead>();
  if (!text) return text.error();
  return TRY_CONTEXT(parse(*text), fmt::format("\"{}\"", path));
}

}  // namespace snapshot
