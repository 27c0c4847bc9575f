// Manifest: what one snapshot consists of. It is written last, and it alone makes a directory a
// snapshot. FORMAT.md describes the file.
//
// Reading is strict: unknown keys, missing keys, doubled keys, wrong types and values outside their
// limits are refused, and the message names the place ("disks[0].layers[1].file"). What is read is
// hostile: a name inside is a plain file name, opened beneath the snapshot's directory only.

#pragma once

#include <nlohmann/json.hpp>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "snapshot/checksum.h"
#include "snapshot/uuid.h"
#include "vmm/base/result.h"

namespace snapshot {

inline constexpr u32 kManifestVersion = 3;
inline constexpr u64 kMaximumManifestBytes = 4 * base::kMiB;

// Names of the files in a snapshot's directory.
inline constexpr char kManifestFile[] = "manifest.json";
inline constexpr char kMemoryFile[] = "memory";
inline constexpr char kMemorySumsFile[] = "memory.sums";
inline constexpr char kStateFile[] = "state";
std::string disk_layer_file(u32 slot);  // "disk-0.qcow2"

// UTC. In the manifest: "2026-11-23T04:21:18.123456789Z".
struct Timestamp {
  i64 seconds = 0;  // since 1970-01-01
  u32 nanoseconds = 0;

  static Timestamp now();
  static Result<Timestamp> parse(std::string_view text);
  std::string to_string() const;
  friend auto operator<=>(const Timestamp&, const Timestamp&) = default;
};

// The host that took the snapshot, as far as a restore depends on it.
struct HostIdentity {
  std::string kvm_kind;    // "svm", "vmx", "pvm", "unknown"
  std::string cpu_vendor;  // CPUID 0: "AuthenticAMD"
  u32 cpu_family = 0;
  u32 cpu_model = 0;
  std::string cpu_name;  // the brand string
  std::string kernel;    // uname -r
  friend bool operator==(const HostIdentity&, const HostIdentity&) = default;
};

// Refuses another kind of KVM, CPU vendor, family or model, or another major kernel version; the
// message names both sides. The brand string and the minor version are for people.
Result<void> check_host(const HostIdentity& snapshot, const HostIdentity& here);

// One file of guest memory. Today there is one layer, which holds all of RAM.
struct MemoryLayer {
  std::string file;
  u64 size_bytes = 0;       // RAM
  u64 allocated_bytes = 0;  // data in the file; the rest are holes
  std::string sums_file;    // one checksum for every 2 MiB (memory_file.h)
  u64 sums_bytes = 0;
  Checksum sums_checksum;
  friend bool operator==(const MemoryLayer&, const MemoryLayer&) = default;
};

struct StateFile {
  std::string file;
  u64 size_bytes = 0;
  Checksum checksum;
  friend bool operator==(const StateFile&, const StateFile&) = default;
};

// A disk image of the user's below our layers. It must not change while a snapshot rests on it.
// `device` and `inode` are hints for people: a copied or restored file has others.
struct BaseImage {
  std::string path;    // absolute
  std::string format;  // "raw", "qcow2"
  u64 size_bytes = 0;  // of the file; of the device for a block device
  i64 mtime_ns = 0;    // since 1970; 0 for a block device
  u64 device = 0;
  u64 inode = 0;

  static Result<BaseImage> identify(const std::string& path, const std::string& format);
  // Refuses a file that is missing or whose size or modification time differs, naming both. `when` is
  // for the message: "since the snapshot".
  Result<void> check_unchanged(std::string_view when) const;
  friend bool operator==(const BaseImage&, const BaseImage&) = default;
};

// A qcow2 layer that some snapshot object owns: this one or an ancestor.
struct DiskLayer {
  Uuid owner;
  std::string file;
  u64 size_bytes = 0;
  // XXH3-64 of the whole file: blockdev::LayerFile::checksum. Nothing for a layer that the guest wrote
  // through to: it is as it was when it was frozen, and reading all of it would hold up the guest's
  // flushes.
  std::optional<u64> checksum;
  friend bool operator==(const DiskLayer&, const DiskLayer&) = default;
};

struct Disk {
  u32 slot = 0;
  std::string name;              // "vda"
  std::string mode;              // "overlay", "persist", "ro"
  u64 virtual_bytes = 0;         // what the guest sees
  std::vector<BaseImage> bases;  // bottom first, so are the layers above them
  std::vector<DiskLayer> layers;

  nlohmann::json to_json() const;
  // `place` is for messages: "disks[0]".
  static Result<Disk> from_json(const nlohmann::json& value, const std::string& place);
  friend bool operator==(const Disk&, const Disk&) = default;
};

struct Manifest {
  Uuid uuid;
  std::string vm;
  std::string name;
  std::string description;
  Timestamp created;
  std::optional<Uuid> parent;
  std::string program;                                // version that wrote it
  nlohmann::json machine = nlohmann::json::object();  // opaque to this folder
  HostIdentity host;
  std::vector<MemoryLayer> memory;
  StateFile state;
  std::vector<Disk> disks;

  std::string serialize() const;
  // The whole text of a manifest file. Checks the checksum first.
  static Result<Manifest> parse(std::string_view text);
};

// 1 to 64 of [A-Za-z0-9._-], not starting with '.' or '-': names of VMs and snapshots, and of files
// inside a snapshot. `what` is for the message.
Result<void> check_plain_name(std::string_view what, std::string_view name);

}  // namespace snapshot
