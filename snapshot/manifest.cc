#include "snapshot/manifest.h"

#include <algorithm>
#include <set>

#include "snapshot/strict_json.h"
#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace snapshot {
namespace {

using nlohmann::json;

// Above what this program can make; low enough that a hostile manifest costs nothing.
constexpr u64 kMaximumMemoryLayers = 16;
constexpr u64 kMaximumDisks = 64;
constexpr u64 kMaximumLayers = 1024;
constexpr u64 kMaximumRamBytes = u64{1} << 46;
constexpr u64 kMaximumFileBytes = u64{1} << 62;

// The last member holds the checksum of all bytes before it, so that the file stays plain JSON.
constexpr std::string_view kTailStart = ",\n  \"checksum\": \"";
constexpr std::string_view kTailEnd = "\"\n}\n";
constexpr std::size_t kChecksumTextBytes = 9 + 32;
constexpr std::size_t kTailBytes = kTailStart.size() + kChecksumTextBytes + kTailEnd.size();

Result<std::string> file_name(JsonObject& object, const char* key) {
  std::string name = TRY(object.text(key));
  TRY_CONTEXT(check_plain_name("file name", name), object.place_of(key));
  return name;
}

json to_json(const HostIdentity& host) {
  return {{"kvm", host.kvm_kind},          {"cpu_vendor", host.cpu_vendor},
          {"cpu_family", host.cpu_family}, {"cpu_model", host.cpu_model},
          {"cpu_name", host.cpu_name},     {"kernel", host.kernel}};
}

Result<HostIdentity> read_host(const json& value, const std::string& place) {
  JsonObject object = TRY(JsonObject::of(value, place));
  HostIdentity host;
  host.kvm_kind = TRY(object.text("kvm", 64));
  host.cpu_vendor = TRY(object.text("cpu_vendor", 64));
  host.cpu_family = static_cast<u32>(TRY(object.number("cpu_family", UINT32_MAX)));
  host.cpu_model = static_cast<u32>(TRY(object.number("cpu_model", UINT32_MAX)));
  host.cpu_name = TRY(object.text("cpu_name", 256));
  host.kernel = TRY(object.text("kernel", 256));
  TRY(object.finish());
  return host;
}

json to_json(const MemoryLayer& layer) {
  return {{"file", layer.file},
          {"size", layer.size_bytes},
          {"allocated", layer.allocated_bytes},
          {"sums_file", layer.sums_file},
          {"sums_size", layer.sums_bytes},
          {"sums_checksum", layer.sums_checksum.to_string()}};
}

Result<MemoryLayer> read_memory_layer(const json& value, const std::string& place) {
  JsonObject object = TRY(JsonObject::of(value, place));
  MemoryLayer layer;
  layer.file = TRY(file_name(object, "file"));
  layer.size_bytes = TRY(object.number("size", kMaximumRamBytes));
  layer.allocated_bytes = TRY(object.number("allocated", layer.size_bytes));
  layer.sums_file = TRY(file_name(object, "sums_file"));
  layer.sums_bytes = TRY(object.number("sums_size", kMaximumFileBytes));
  layer.sums_checksum = TRY(object.parsed("sums_checksum", Checksum::parse));
  TRY(object.finish());
  if (layer.size_bytes == 0 || !base::is_aligned(layer.size_bytes, base::kPageBytes)) {
    return make_error(ErrorKind::corrupt, "{}.size is {}, not a number of pages", place,
                      layer.size_bytes);
  }
  return layer;
}

json to_json(const StateFile& state) {
  return {
      {"file", state.file}, {"size", state.size_bytes}, {"checksum", state.checksum.to_string()}};
}

Result<StateFile> read_state(const json& value, const std::string& place) {
  JsonObject object = TRY(JsonObject::of(value, place));
  StateFile state;
  state.file = TRY(file_name(object, "file"));
  state.size_bytes = TRY(object.number("size", kMaximumFileBytes));
  state.checksum = TRY(object.parsed("checksum", Checksum::parse));
  TRY(object.finish());
  return state;
}

json to_json(const BaseImage& image) {
  return {{"path", image.path},         {"format", image.format}, {"size", image.size_bytes},
          {"mtime_ns", image.mtime_ns}, {"device", image.device}, {"inode", image.inode}};
}

Result<BaseImage> read_base(const json& value, const std::string& place) {
  JsonObject object = TRY(JsonObject::of(value, place));
  BaseImage image;
  image.path = TRY(object.text("path"));
  image.format = TRY(object.text("format", 16));
  image.size_bytes = TRY(object.number("size", kMaximumFileBytes));
  image.mtime_ns = TRY(object.signed_number("mtime_ns"));
  image.device = TRY(object.number("device"));
  image.inode = TRY(object.number("inode"));
  TRY(object.finish());
  if (!image.path.starts_with('/')) {
    return make_error(ErrorKind::corrupt, "{}.path \"{}\" is not absolute", place, image.path);
  }
  if (image.format != "raw" && image.format != "qcow2") {
    return make_error(ErrorKind::corrupt, "{}.format \"{}\" is neither raw nor qcow2", place,
                      image.format);
  }
  return image;
}

json to_json(const DiskLayer& layer) {
  return {{"owner", layer.owner.to_string()},
          {"file", layer.file},
          {"size", layer.size_bytes},
          {"checksum",
           layer.checksum ? json(fmt::format("xxh3-64:{:016x}", *layer.checksum)) : json()}};
}

Result<u64> parse_checksum64(std::string_view text) {
  constexpr std::string_view kPrefix = "xxh3-64:";
  u64 value = 0;
  bool good = text.size() == kPrefix.size() + 16 && text.starts_with(kPrefix);
  for (const char c : good ? text.substr(kPrefix.size()) : std::string_view()) {
    const bool digit = c >= '0' && c <= '9';
    good = good && (digit || (c >= 'a' && c <= 'f'));
    value = value << 4 | static_cast<u64>(digit ? c - '0' : c - 'a' + 10);
  }
  if (!good) return make_error(ErrorKind::corrupt, "\"{}\" is not a checksum", text.substr(0, 64));
  return value;
}

Result<DiskLayer> read_layer(const json& value, const std::string& place) {
  JsonObject object = TRY(JsonObject::of(value, place));
  DiskLayer layer;
  layer.owner = TRY(object.parsed("owner", Uuid::parse));
  layer.file = TRY(file_name(object, "file"));
  layer.size_bytes = TRY(object.number("size", kMaximumFileBytes));
  if (object.is_null("checksum")) {
    TRY(object.skip("checksum"));
  } else {
    layer.checksum = TRY(object.parsed("checksum", parse_checksum64));
  }
  TRY(object.finish());
  return layer;
}

// Reads every element of an array with `read`, giving it the element's place.
template <class Read>
auto read_array(JsonObject& object, const char* key, u64 limit, Read read)
    -> Result<std::vector<std::decay_t<decltype(*read(json(), std::string()))>>> {
  const json* const array = TRY(object.array(key, limit));
  std::vector<std::decay_t<decltype(*read(json(), std::string()))>> elements;
  for (std::size_t i = 0; i < array->size(); ++i) {
    elements.push_back(TRY(read((*array)[i], fmt::format("{}[{}]", object.place_of(key), i))));
  }
  return elements;
}

json to_json(const Disk& disk) { return disk.to_json(); }

template <class T>
json to_json_array(const std::vector<T>& elements) {
  json array = json::array();
  for (const T& element : elements) array.push_back(to_json(element));
  return array;
}

// Every file of this object once: two entries that name one file are a forgery.
Result<void> check_consistency(const Manifest& manifest) {
  if (manifest.parent == manifest.uuid) {
    return make_error(ErrorKind::corrupt, "the snapshot is its own parent");
  }
  if (manifest.memory.size() != 1) {
    return make_error(ErrorKind::corrupt, "memory has {} layers, not 1", manifest.memory.size());
  }
  std::set<std::string> names{kManifestFile, "lock"};
  const auto claim = [&](const std::string& file) -> Result<void> {
    if (!names.insert(file).second) {
      return make_error(ErrorKind::corrupt, "file \"{}\" is named twice", file);
    }
    return {};
  };
  TRY(claim(manifest.memory[0].file));
  TRY(claim(manifest.memory[0].sums_file));
  TRY(claim(manifest.state.file));
  for (std::size_t i = 0; i < manifest.disks.size(); ++i) {
    const Disk& disk = manifest.disks[i];
    if (disk.slot != i) {
      return make_error(ErrorKind::corrupt, "disks[{}].slot is {}", i, disk.slot);
    }
    for (const DiskLayer& layer : disk.layers) {
      if (layer.owner == manifest.uuid) TRY(claim(layer.file));
    }
  }
  return {};
}

Result<Manifest> read_manifest(const json& document) {
  JsonObject object = TRY(JsonObject::of(document, ""));
  // Before anything else, so that another version is named as that and not by its first new key.
  const u64 version = TRY(object.number("version"));
  if (version != kManifestVersion) {
    return make_error(ErrorKind::unsupported, "format version {}; this program reads version {}",
                      version, kManifestVersion)
        .with_hint("use the Quicksave that took it; \"program\" in its manifest names it");
  }
  const std::string architecture = TRY(object.text("architecture", 64));
  if (architecture != "x86_64") {
    return make_error(ErrorKind::unsupported, "made for {}; this program runs x86_64",
                      architecture);
  }
  TRY(object.text("checksum"));  // checked before
  Manifest manifest;
  manifest.uuid = TRY(object.parsed("uuid", Uuid::parse));
  manifest.vm = TRY(object.text("vm", 64));
  TRY_CONTEXT(check_plain_name("VM name", manifest.vm), "vm");
  manifest.name = TRY(object.text("name", 64));
  TRY_CONTEXT(check_plain_name("snapshot name", manifest.name), "name");
  manifest.description = TRY(object.text("description", 64 * base::kKiB));
  manifest.created = TRY(object.parsed("created", Timestamp::parse));
  if (object.is_null("parent")) {
    TRY(object.skip("parent"));
  } else {
    manifest.parent = TRY(object.parsed("parent", Uuid::parse));
  }
  manifest.program = TRY(object.text("program", 64));
  manifest.machine = *TRY(object.object("machine"));
  const json* const host = TRY(object.object("host"));
  manifest.host = TRY(read_host(*host, "host"));
  manifest.memory = TRY(read_array(object, "memory", kMaximumMemoryLayers, read_memory_layer));
  const json* const state = TRY(object.object("state"));
  manifest.state = TRY(read_state(*state, "state"));
  manifest.disks = TRY(read_array(object, "disks", kMaximumDisks, Disk::from_json));
  TRY(object.finish());
  TRY(check_consistency(manifest));
  return manifest;
}

// "6" of "6.18.2-cloud".
std::string_view major_version(std::string_view kernel) {
  return kernel.substr(0, kernel.find('.'));
}

}  // namespace

std::string disk_layer_file(u32 slot) { return fmt::format("disk-{}.qcow2", slot); }

json Disk::to_json() const {
  return {{"slot", slot},
          {"name", name},
          {"mode", mode},
          {"virtual_size", virtual_bytes},
          {"bases", to_json_array(bases)},
          {"layers", to_json_array(layers)}};
}

Result<Disk> Disk::from_json(const json& value, const std::string& place) {
  JsonObject object = TRY(JsonObject::of(value, place));
  Disk disk;
  disk.slot = static_cast<u32>(TRY(object.number("slot", kMaximumDisks - 1)));
  disk.name = TRY(object.text("name", 64));
  disk.mode = TRY(object.text("mode", 16));
  disk.virtual_bytes = TRY(object.number("virtual_size", kMaximumFileBytes));
  disk.bases = TRY(read_array(object, "bases", kMaximumLayers, read_base));
  disk.layers = TRY(read_array(object, "layers", kMaximumLayers, read_layer));
  TRY(object.finish());
  if (disk.bases.empty()) return make_error(ErrorKind::corrupt, "{}.bases is empty", place);
  if (disk.mode != "overlay" && disk.mode != "persist" && disk.mode != "ro") {
    return make_error(ErrorKind::corrupt, "{}.mode \"{}\" is not overlay, persist or ro", place,
                      disk.mode);
  }
  return disk;
}

std::string Manifest::serialize() const {
  const json document = {{"version", kManifestVersion},
                         {"architecture", "x86_64"},
                         {"uuid", uuid.to_string()},
                         {"vm", vm},
                         {"name", name},
                         {"description", description},
                         {"created", created.to_string()},
                         {"parent", parent ? json(parent->to_string()) : json()},
                         {"program", program},
                         {"machine", machine},
                         {"host", to_json(host)},
                         {"memory", to_json_array(memory)},
                         {"state", to_json(state)},
                         {"disks", to_json_array(disks)}};
  // Text that is no UTF-8 (a guest chose a name, a path of the host) must not throw.
  std::string text = document.dump(2, ' ', false, json::error_handler_t::replace);
  text.resize(text.size() - 2);  // "\n}"
  const std::string checksum = Checksum::of(text).to_string();
  CHECK(checksum.size() == kChecksumTextBytes);
  text += kTailStart;
  text += checksum;
  text += kTailEnd;
  return text;
}

Result<Manifest> Manifest::parse(std::string_view text) {
  if (text.size() > kMaximumManifestBytes) {
    return make_error(ErrorKind::corrupt, "manifest has {} bytes, more than {}", text.size(),
                      kMaximumManifestBytes);
  }
  const auto torn = [] {
    return make_error(ErrorKind::corrupt, "manifest is cut short or was changed");
  };
  if (text.size() < kTailBytes) return torn();
  const std::string_view body = text.substr(0, text.size() - kTailBytes);
  const std::string_view tail = text.substr(body.size());
  const std::string_view checksum = tail.substr(kTailStart.size(), kChecksumTextBytes);
  if (!tail.starts_with(kTailStart) || !tail.ends_with(kTailEnd)) return torn();
  if (checksum != Checksum::of(body).to_string()) return torn();
  const json document = TRY_CONTEXT(parse_json(text), "manifest");
  return TRY_CONTEXT(read_manifest(document), "manifest");
}

Result<void> check_plain_name(std::string_view what, std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  if (name.empty() || name.size() > 64 || name.front() == '.' || name.front() == '-' ||
      !std::ranges::all_of(name, allowed)) {
    return make_error(ErrorKind::usage,
                      "{} \"{}\" is not 1 to 64 of A-Z a-z 0-9 . _ - with a letter, digit or _ "
                      "first",
                      what, name.substr(0, 80));
  }
  return {};
}

Result<void> check_host(const HostIdentity& snapshot, const HostIdentity& here) {
  const auto refuse = [](std::string_view what, const auto& there, const auto& now) {
    return make_error(ErrorKind::unsupported, "snapshot was taken on {} {}, this host has {}", what,
                      there, now)
        .with_hint("restore it on a host like the one it was taken on");
  };
  if (snapshot.kvm_kind != here.kvm_kind) {
    return refuse("KVM kind", snapshot.kvm_kind, here.kvm_kind);
  }
  if (snapshot.cpu_vendor != here.cpu_vendor) {
    return refuse("CPU vendor", snapshot.cpu_vendor, here.cpu_vendor);
  }
  if (snapshot.cpu_family != here.cpu_family || snapshot.cpu_model != here.cpu_model) {
    return refuse(
        "CPU family/model",
        fmt::format("{}/{} ({})", snapshot.cpu_family, snapshot.cpu_model, snapshot.cpu_name),
        fmt::format("{}/{} ({})", here.cpu_family, here.cpu_model, here.cpu_name));
  }
  if (major_version(snapshot.kernel) != major_version(here.kernel)) {
    return refuse("Linux", snapshot.kernel, here.kernel);
  }
  return {};
}

}  // namespace snapshot
