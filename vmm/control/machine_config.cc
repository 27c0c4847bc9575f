#include "vmm/control/machine_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "blockdev/disk_spec.h"
#include "vmm/control/json_reader.h"
#include "vmm/control/size_text.h"

namespace control {
namespace {

using nlohmann::json;

// Documentation/x86/boot.rst: COMMAND_LINE_SIZE of x86 is 2048, its final zero included.
constexpr u64 kMaximumAppendBytes = 2047;

Result<void> check_path(std::string_view what, const std::string& path) {
  if (path.empty()) return make_error(ErrorKind::usage, "{}: the file name is empty", what);
  if (path.front() != '/') {
    return make_error(ErrorKind::usage, "{}: \"{}\" is not an absolute path", what, path);
  }
  return {};
}

Result<void> check_append(const std::string& append) {
  if (append.size() > kMaximumAppendBytes) {
    return make_error(ErrorKind::usage, "kernel command line has {} bytes, more than {}",
                      append.size(), kMaximumAppendBytes);
  }
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  if (std::any_of(append.begin(), append.end(), is_control)) {
    return make_error(ErrorKind::usage, "kernel command line holds a control character");
  }
  return {};
}

}  // namespace

std::string_view name_of(ClockPolicy policy) {
  return policy == ClockPolicy::frozen ? "frozen" : "realtime";
}

std::string_view name_of(NoSpacePolicy policy) {
  return policy == NoSpacePolicy::error ? "error" : "pause";
}

Result<ClockPolicy> parse_clock_policy(std::string_view text) {
  if (text == "realtime") return ClockPolicy::realtime;
  if (text == "frozen") return ClockPolicy::frozen;
  return make_error(ErrorKind::usage, "clock is \"{}\", not realtime or frozen", text);
}

Result<NoSpacePolicy> parse_no_space_policy(std::string_view text) {
  if (text == "pause") return NoSpacePolicy::pause;
  if (text == "error") return NoSpacePolicy::error;
  return make_error(ErrorKind::usage, "on-enospc is \"{}\", not pause or error", text);
}

Result<void> MachineConfig::validate() const {
  TRY(check_path("kernel", kernel));
  if (initrd) TRY(check_path("initrd", *initrd));
  TRY(check_append(append));
  if (memory_bytes < kMinimumMemoryBytes || memory_bytes > kMaximumMemoryBytes) {
    return make_error(ErrorKind::usage, "memory of {} is outside {} to {}",
                      format_size(memory_bytes), format_size(kMinimumMemoryBytes),
                      format_size(kMaximumMemoryBytes));
  }
  if (memory_bytes % base::kMiB != 0) {
    return make_error(ErrorKind::usage, "memory of {} bytes is not a whole number of MiB",
                      memory_bytes);
  }
  if (cpus < 1 || cpus > kMaximumCpus) {
    return make_error(ErrorKind::usage, "{} CPUs are outside 1 to {}", cpus, kMaximumCpus);
  }
  if (disks.size() > kMaximumDisks) {
    return make_error(ErrorKind::usage, "{} disks are more than {}", disks.size(), kMaximumDisks);
  }
  for (const std::string& disk : disks) {
    const blockdev::DiskSpec spec = TRY(blockdev::parse_disk_spec(disk));
    TRY(check_path("disk", spec.path));
  }
  return {};
}

json MachineConfig::to_json() const {
  json value = {{"kernel", kernel}, {"append", append}, {"memory_bytes", memory_bytes},
                {"cpus", cpus},     {"disks", disks},   {"on_enospc", name_of(on_enospc)}};
  if (initrd) value["initrd"] = *initrd;
  return value;
}

Result<MachineConfig> MachineConfig::from_json(const json& value) {
  JsonObject object = TRY(JsonObject::open(value, "config"));
  MachineConfig config;
  config.kernel = TRY(object.string("kernel"));
  config.initrd = TRY(object.optional_string("initrd"));
  config.append = TRY(object.optional_string("append")).value_or("");
  config.memory_bytes = TRY(object.integer_or("memory_bytes", kMinimumMemoryBytes,
                                              kMaximumMemoryBytes, config.memory_bytes));
  config.cpus = static_cast<u32>(TRY(object.integer_or("cpus", 1, kMaximumCpus, 1)));
  config.disks = TRY(object.strings("disks", kMaximumDisks));
  const std::optional<std::string> on_enospc = TRY(object.optional_string("on_enospc"));
  if (on_enospc) config.on_enospc = TRY(parse_no_space_policy(*on_enospc));
  TRY(object.finish());
  TRY(config.validate());
  return config;
}

}  // namespace control
