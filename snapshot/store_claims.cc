// SnapshotStore: who needs an image of the user's as it is.

#include <stdlib.h>
#include <sys/stat.h>

#include <memory>

#include "snapshot/disk_heads.h"
#include "snapshot/store.h"
#include "snapshot/store_files.h"

namespace snapshot {
namespace {

bool is_same_file(const BaseImage& image, const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && status.st_dev == image.device &&
         status.st_ino == image.inode;
}

// As snapshots see it: by name, or by what it is if it was given another name.
bool rests_on(const Disk& disk, const BaseImage& now) {
  for (const BaseImage& base : disk.bases) {
    const bool is_it =
        base.path == now.path || (base.device == now.device && base.inode == now.inode);
    if (is_it && base.size_bytes == now.size_bytes && base.mtime_ns == now.mtime_ns) return true;
  }
  return false;
}

std::string real_path(const std::string& path) {
  const std::unique_ptr<char, void (*)(void*)> resolved(::realpath(path.c_str(), nullptr), ::free);
  return resolved ? resolved.get() : path;
}

// What `--disk` says to go on from a VM's newest state. Commas in names are doubled.
std::string disk_argument(const std::string& file, const Disk& below,
                          const std::vector<std::string>& between) {
  const auto doubled = [](std::string_view text) {
    std::string out;
    for (const char c : text) out += c == ',' ? ",," : std::string(1, c);
    return out;
  };
  std::string text = doubled(file) + ",format=qcow2,mode=persist";
  for (auto path = between.rbegin(); path != between.rend(); ++path) {
    text += fmt::format(",backing={}:qcow2", doubled(*path));
  }
  for (auto base = below.bases.rbegin(); base != below.bases.rend(); ++base) {
    text += fmt::format(",backing={}:{}", doubled(base->path), base->format);
  }
  return text;
}

// What lies between a head and the images, from bottom to top.
std::vector<std::string> files_between(const DiskHead& head, const std::string& directory,
                                       const SnapshotStore& store) {
  std::vector<std::string> files;
  for (const DiskLayer& layer : head.below.layers) files.push_back(store.layer_path(layer));
  for (const std::string& file : head.frozen) files.push_back(directory + "/" + file);
  return files;
}

}  // namespace

Result<std::vector<NewestDisk>> SnapshotStore::newest_disks(const std::string& vm) const {
  TRY(check_plain_name("VM name", vm));
  const std::string directory = vms_ + "/" + vm;
  std::vector<NewestDisk> disks;
  for (const DiskHead& head : TRY(read_disk_heads(directory))) {
    const std::string file = directory + "/" + head.file;
    disks.push_back(
        {.name = head.below.name,
         .file = file,
         .argument = disk_argument(file, head.below, files_between(head, directory, *this))});
  }
  return disks;
}

Result<void> SnapshotStore::check_may_write(const std::string& image) const {
  const Result<BaseImage> found = BaseImage::identify(real_path(image), "raw");
  if (!found) return {};  // who opens it says it better
  const BaseImage& now = *found;
  // What a VM's disk rests on comes first: its remedy goes on from the newest state.
  for (const std::string& vm : TRY(names_in(vms_))) {
    if (!check_plain_name("VM name", vm)) continue;
    const std::string directory = vms_ + "/" + vm;
    for (const DiskHead& head : TRY(read_disk_heads(directory))) {
      const std::vector<std::string> between = files_between(head, directory, *this);
      bool is_needed = rests_on(head.below, now);
      for (const std::string& path : between) is_needed = is_needed || is_same_file(now, path);
      if (!is_needed) continue;
      const std::string file = directory + "/" + head.file;
      return make_error(ErrorKind::busy,
                        "disk \"{}\" is frozen: what VM \"{}\" wrote to it since a snapshot lies "
                        "above it, in \"{}\"",
                        image, vm, file)
          .with_hint(
              fmt::format("go on from there with --disk {}; or quicksave rm --force {} drops "
                          "that and its snapshots",
                          disk_argument(file, head.below, between), vm));
    }
  }
  for (const std::string& entry : TRY(names_in(snapshots_))) {
    const Result<Uuid> uuid = Uuid::parse(entry);
    if (!uuid) continue;
    const Result<Manifest> manifest = read_manifest_at(object_path(*uuid), *uuid);
    if (!manifest) continue;  // without a valid manifest there is no snapshot
    for (const Disk& disk : manifest->disks) {
      bool is_needed = rests_on(disk, now);
      for (const DiskLayer& layer : disk.layers) {
        is_needed = is_needed || is_same_file(now, layer_path(layer));
      }
      if (!is_needed) continue;
      return make_error(ErrorKind::busy, "disk \"{}\" is frozen: snapshot '{}@{}' rests on it",
                        image, manifest->vm, manifest->name)
          .with_hint(
              fmt::format("mode=overlay leaves it as it is; quicksave restore {0}@{1} goes on "
                          "from the snapshot; or quicksave snapshot delete {0}@{1}",
                          manifest->vm, manifest->name));
    }
  }
  return {};
}

Result<void> SnapshotStore::check_may_remove(const std::string& vm) const {
  const std::string directory = real_path(vms_ + "/" + vm) + "/";
  const auto refuse_if_within = [&](const Disk& disk, const std::string& who) -> Result<void> {
    for (const BaseImage& base : disk.bases) {
      if (!base.path.starts_with(directory)) continue;
      return make_error(ErrorKind::busy, "VM \"{}\": {} rests on its \"{}\"", vm, who, base.path)
          .with_hint("remove that first");
    }
    return {};
  };
  for (const std::string& other : TRY(names_in(vms_))) {
    if (other == vm || !check_plain_name("VM name", other)) continue;
    for (const DiskHead& head : TRY(read_disk_heads(vms_ + "/" + other))) {
      TRY(refuse_if_within(head.below,
                           fmt::format("disk {} of VM \"{}\"", head.below.name, other)));
    }
  }
  for (const std::string& entry : TRY(names_in(snapshots_))) {
    const Result<Uuid> uuid = Uuid::parse(entry);
    if (!uuid) continue;
    const Result<Manifest> manifest = read_manifest_at(object_path(*uuid), *uuid);
    if (!manifest) continue;
    for (const Disk& disk : manifest->disks) {
      TRY(refuse_if_within(disk, fmt::format("snapshot '{}@{}'", manifest->vm, manifest->name)));
    }
  }
  return {};
}

}  // namespace snapshot
