#include "snapshot/store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "snapshot/file_lock.h"
#include "snapshot/memory_file.h"
#include "snapshot/safe_open.h"
#include "snapshot/state_file.h"
#include "snapshot/store_files.h"
#include "vmm/base/directories.h"

namespace snapshot {
namespace {

constexpr u32 kMaximumDepth = 1024;
// Disk layers up to this size are read in full by open(): 0.1 ms at most.
constexpr u64 kSmallFileBytes = base::kMiB;

Result<Manifest> read_manifest_of(const base::Fd& directory, const Uuid& uuid) {
  const base::Fd file = TRY(open_plain_file(directory, kManifestFile));
  const u64 size = TRY(base::file_size(file));
  if (size > kMaximumManifestBytes) {
    return make_error(ErrorKind::corrupt, "manifest has {} bytes, more than {}", size,
                      kMaximumManifestBytes);
  }
  std::string text(size, '\0');
  TRY(base::read_exactly(file, {reinterpret_cast<u8*>(text.data()), text.size()}, 0));
  Manifest manifest = TRY(Manifest::parse(text));
  if (manifest.uuid != uuid) {
    return make_error(ErrorKind::corrupt, "manifest is that of {}", manifest.uuid.to_string());
  }
  return manifest;
}

// A layer that the guest wrote through to comes from the VM's directory, where its name goes last.
HardLinks links_of(const Disk& disk) {
  return disk.mode == "persist" ? HardLinks::one_other : HardLinks::none;
}

}  // namespace

Result<Manifest> read_manifest_at(const std::string& path, const Uuid& uuid) {
  const base::Fd directory = TRY(open_private_directory(path));
  return read_manifest_of(directory, uuid);
}

Result<base::Fd> SnapshotObject::open_file(const std::string& name) const {
  return open_plain_file(directory_, name);
}

Result<SnapshotStore> SnapshotStore::open(std::string snapshots, std::string vms) {
  TRY(base::make_directories(snapshots));
  TRY(base::make_directories(vms));
  return SnapshotStore(std::move(snapshots), std::move(vms));
}

Result<Uuid> SnapshotStore::resolve(const std::string& vm, const std::string& name) const {
  TRY(check_plain_name("VM name", vm));
  TRY(check_plain_name("snapshot name", name));
  Result<std::string> text = base::read_whole_file(ref_path(vm, name), 64);
  if (!text && text.error().kind() == ErrorKind::not_found) {
    return make_error(ErrorKind::not_found, "VM \"{}\" has no snapshot \"{}\"", vm, name)
        .with_hint("`quicksave snapshot list` shows those that are there");
  }
  if (!text) return std::move(text).error();
  if (text->size() != 37 || text->back() != '\n') {
    return make_error(ErrorKind::corrupt, "name \"{}\" of VM \"{}\" is damaged", name, vm);
  }
  text->pop_back();
  return Uuid::parse(*text);
}

Result<SnapshotObject> SnapshotStore::open(const Uuid& uuid) const {
  const std::string path = object_path(uuid);
  const std::string context = fmt::format("snapshot {}", uuid.to_string());
  const auto open_locked = [&]() -> Result<SnapshotObject> {
    const base::Fd store_lock = TRY(lock_store(snapshots_, LockMode::shared));
    base::Fd directory = TRY(open_private_directory(path));
    base::Fd lock = TRY(base::open_file_at(directory, kLockFile, O_RDWR | O_NOFOLLOW));
    TRY(lock_file(lock, LockMode::shared, LockWait::no));
    Manifest manifest = TRY(read_manifest_of(directory, uuid));
    return SnapshotObject(std::move(manifest), path, std::move(directory), std::move(lock));
  };
  SnapshotObject object = TRY_CONTEXT(open_locked(), context);
  TRY_CONTEXT(check_files(object), context);
  TRY_CONTEXT(check_ancestors(object.manifest()), context);
  for (const Disk& disk : object.manifest().disks) {
    for (const BaseImage& base : disk.bases) {
      TRY_CONTEXT(base.check_unchanged("since the snapshot"), context);
    }
  }
  return object;
}

// Sizes before anything is mapped; contents only of what is small.
Result<void> SnapshotStore::check_files(const SnapshotObject& object) const {
  const Manifest& manifest = object.manifest();
  for (const MemoryLayer& layer : manifest.memory) {
    TRY(open_memory_file(object.directory(), layer));
    TRY(open_sized_file(object.directory(), layer.sums_file, layer.sums_bytes));
  }
  const base::Fd state =
      TRY(open_sized_file(object.directory(), manifest.state.file, manifest.state.size_bytes));
  TRY(read_state_file(state, manifest.state));
  for (const Disk& disk : manifest.disks) {
    for (const DiskLayer& layer : disk.layers) {
      const auto check = [&]() -> Result<void> {
        // Through the open directory for our own: before publish() it has another name.
        base::Fd elsewhere;
        if (layer.owner != manifest.uuid) {
          elsewhere = TRY(open_private_directory(object_path(layer.owner)));
        }
        const base::Fd& directory = elsewhere ? elsewhere : object.directory();
        const base::Fd file =
            TRY(open_sized_file(directory, layer.file, layer.size_bytes, links_of(disk)));
        if (layer.size_bytes > kSmallFileBytes) return {};
        return check_disk_layer(file, layer);
      };
      TRY_CONTEXT(check(), fmt::format("disk \"{}\", layer of snapshot {}", disk.name,
                                       layer.owner.to_string()));
    }
  }
  return {};
}

Result<void> SnapshotStore::check_ancestors(const Manifest& manifest) const {
  std::set<Uuid> ancestors{manifest.uuid};
  std::optional<Uuid> next = manifest.parent;
  while (next) {
    if (!ancestors.insert(*next).second) {
      return make_error(ErrorKind::corrupt, "its ancestors form a circle at {}", next->to_string());
    }
    if (ancestors.size() > kMaximumDepth) {
      return make_error(ErrorKind::unsupported, "more than {} ancestors", kMaximumDepth);
    }
    const Manifest parent = TRY_CONTEXT(read_manifest_at(object_path(*next), *next),
                                        fmt::format("its ancestor {}", next->to_string()));
    next = parent.parent;
  }
  for (const Disk& disk : manifest.disks) {
    for (const DiskLayer& layer : disk.layers) {
      if (!ancestors.contains(layer.owner)) {
        return make_error(ErrorKind::corrupt,
                          "disk \"{}\" rests on a layer of {}, which is no ancestor", disk.name,
                          layer.owner.to_string());
      }
    }
  }
  return {};
}

std::string SnapshotStore::layer_path(const DiskLayer& layer) const {
  return object_path(layer.owner) + "/" + layer.file;
}

u64 SnapshotStore::disk_bytes(const Manifest& manifest) const {
  u64 sum = 0;
  for (const Disk& disk : manifest.disks) {
    for (const DiskLayer& layer : disk.layers) {
      struct stat status {};
      if (layer.owner != manifest.uuid) continue;
      if (::stat(layer_path(layer).c_str(), &status) == 0) {
        sum += static_cast<u64>(status.st_blocks) * 512;
      }
    }
  }
  return sum;
}

Result<void> SnapshotStore::check(const SnapshotObject& object) const {
  for (const MemoryLayer& layer : object.manifest().memory) {
    TRY(verify_memory_file(object.directory(), layer));
  }
  for (const Disk& disk : object.manifest().disks) {
    for (const DiskLayer& layer : disk.layers) {
      const base::Fd directory = TRY(open_private_directory(object_path(layer.owner)));
      const base::Fd file =
          TRY(open_sized_file(directory, layer.file, layer.size_bytes, links_of(disk)));
      TRY_CONTEXT(check_disk_layer(file, layer), fmt::format("disk \"{}\"", disk.name));
    }
  }
  return {};
}

Result<std::vector<ListedSnapshot>> SnapshotStore::list(const std::string& vm) const {
  std::vector<std::string> owners{vm};
  if (vm.empty()) owners = TRY(names_in(vms_));
  std::vector<ListedSnapshot> all;
  for (const std::string& owner : owners) {
    if (!check_plain_name("VM name", owner)) continue;
    const std::vector<std::string> names = TRY(names_in(refs_path(owner)));
    for (const std::string& name : names) {
      if (!check_plain_name("snapshot name", name)) continue;  // a name that is being written
      const Result<Uuid> uuid = resolve(owner, name);
      if (!uuid && uuid.error().kind() == ErrorKind::not_found) continue;  // removed meanwhile
      ListedSnapshot listed{owner, name, uuid ? *uuid : Uuid{}, std::nullopt, ""};
      Result<Manifest> manifest =
          uuid ? read_manifest_at(object_path(*uuid), *uuid) : Result<Manifest>(uuid.error());
      if (manifest) {
        listed.manifest = std::move(*manifest);
      } else if (::access(ref_path(owner, name).c_str(), F_OK) != 0) {
        continue;  // removed meanwhile
      } else {
        listed.damage = manifest.error().message();
      }
      all.push_back(std::move(listed));
    }
  }
  std::ranges::stable_sort(all, {}, [](const ListedSnapshot& listed) {
    return listed.manifest ? listed.manifest->created : Timestamp{};
  });
  return all;
}

}  // namespace snapshot
