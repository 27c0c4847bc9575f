// SnapshotStore: snapshot objects on disk, and the names that VMs give them.
//
//   SNAPSHOTS/.lock                    taken for moments only: shared to open, exclusive to remove
//            /UUID/                    one object, 0700; immutable
//                 /lock                OFD lock: shared by every process that needs the object,
//                 /manifest.json       exclusive while it is written
//                 /memory, memory.sums, state, disk-N.qcow2
//            /.UUID.tmp-xxxxxxxx/      an object that is being written
//            /.trash-xxxxxxxx/         an object that is being removed
//   VMS/NAME/refs/SNAPSHOT             the UUID and a newline
//           /disks.json                what the newest state of its disks rests on (disk_heads.h)
//
// An object appears by rename, after everything in it is durable; its name appears after that. So
// what is listed is whole. An object stays while a name, a child, a VM's disk or a live process needs
// it.
//
// Invariant: a process that is killed at any moment leaves either a whole snapshot or leftovers
// that nobody sees and gc() removes. Thread: all calls from any thread; SnapshotDraft and
// SnapshotObject: one thread at a time.

#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "snapshot/manifest.h"
#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace snapshot {

// A snapshot in use: holds the shared lock.
class SnapshotObject final {
 public:
  const Manifest& manifest() const { return manifest_; }
  const base::Fd& directory() const { return directory_; }
  const std::string& path() const { return path_; }
  // A file that the manifest names, read-only, after the checks of open().
  Result<base::Fd> open_file(const std::string& name) const;

 private:
  friend class SnapshotStore;
  SnapshotObject(Manifest manifest, std::string path, base::Fd directory, base::Fd lock)
      : manifest_(std::move(manifest)),
        path_(std::move(path)),
        directory_(std::move(directory)),
        lock_(std::move(lock)) {}

  Manifest manifest_;
  std::string path_;
  base::Fd directory_;
  base::Fd lock_;
};

// A snapshot being written. Dropped before publish(), it leaves nothing.
class SnapshotDraft final {
 public:
  SnapshotDraft(SnapshotDraft&&) noexcept = default;
  SnapshotDraft& operator=(SnapshotDraft&&) = delete;
  ~SnapshotDraft();

  const Uuid& uuid() const { return uuid_; }
  // Where the files go: memory_file.h and state_file.h take the descriptor, the qcow2 writer a
  // path.
  const base::Fd& directory() const { return directory_; }
  std::string file_path(const std::string& name) const { return path_ + "/" + name; }

 private:
  friend class SnapshotStore;
  SnapshotDraft(Uuid uuid, std::string path, base::Fd directory, base::Fd lock)
      : uuid_(uuid),
        path_(std::move(path)),
        directory_(std::move(directory)),
        lock_(std::move(lock)) {}

  Uuid uuid_;
  std::string path_;
  base::Fd directory_;
  base::Fd lock_;
};

struct ListedSnapshot {
  std::string vm;
  std::string name;
  Uuid uuid;
  std::optional<Manifest> manifest;  // nothing when it is damaged
  std::string damage;                // why
};

struct GarbageReport {
  u32 removed = 0;                   // objects and leftovers
  std::vector<std::string> damaged;  // named objects without a valid manifest: kept
};

// Where one persistent disk of a VM is since a snapshot has frozen what it was started on.
struct NewestDisk {
  std::string name;      // "vda"
  std::string file;      // with its path
  std::string argument;  // what --disk says to go on from there
};

class SnapshotStore final {
 public:
  // Creates the directories that are missing, 0700.
  static Result<SnapshotStore> open(std::string snapshots, std::string vms);
  // Where the objects are, for messages.
  const std::string& path() const { return snapshots_; }

  // Refused when `vm` has a snapshot of that name. Takes no long lock; call it before the pause.
  Result<SnapshotDraft> begin(const std::string& vm, const std::string& name) const;
  // Checks the files against the manifest, makes everything durable, and lets the object and its
  // name (manifest.vm, manifest.name) appear. If it fails, nothing appears.
  // REQUIRES: manifest.uuid is the draft's.
  Result<SnapshotObject> publish(SnapshotDraft draft, Manifest manifest) const;

  Result<Uuid> resolve(const std::string& vm, const std::string& name) const;

  // Takes the shared lock and checks all that is cheap: manifest, owners and modes, sizes, state
  // and checksums of state and small files, ancestors, disk layers, base images. Reads nothing in
  // proportion to memory or disks.
  Result<SnapshotObject> open(const Uuid& uuid) const;
  // Where a disk layer of `object` is; checked by open().
  std::string layer_path(const DiskLayer& layer) const;
  // What the snapshot's own disk files occupy on the host, holes left out: the layers below belong to
  // its ancestors.
  u64 disk_bytes(const Manifest& manifest) const;
  // Reads everything: every chunk of memory, every disk layer.
  Result<void> check(const SnapshotObject& object) const;

  // Refuses an image that a snapshot, or the newest state of a VM's persistent disk, rests on as it is
  // now; the message says which, and the hint what to do. A file that has changed since is of no use
  // to them any more and may be written.
  Result<void> check_may_write(const std::string& image) const;

  Result<std::vector<NewestDisk>> newest_disks(const std::string& vm) const;
  // Refuses a VM in whose directory lies what a snapshot or another VM's disk was made above.
  Result<void> check_may_remove(const std::string& vm) const;

  // Whole snapshots by creation time. All VMs when `vm` is empty.
  Result<std::vector<ListedSnapshot>> list(const std::string& vm) const;

  // Removes the name and the object. Refused while another snapshot rests on it or a process uses
  // it (a live VM lets go of its own first: VmControl::delete_snapshot).
  Result<void> remove(const std::string& vm, const std::string& name) const;
  // Removes all names of `vm` and its claim on what its disks rest on (disk_heads.h), then what nobody
  // needs any more.
  Result<void> remove_names(const std::string& vm) const;

  // Removes what processes left that died while they wrote or removed an object. Reads no manifest.
  Result<u32> remove_leftovers() const;
  // Removes leftovers and objects without name, child or user.
  Result<GarbageReport> gc() const;

 private:
  SnapshotStore(std::string snapshots, std::string vms)
      : snapshots_(std::move(snapshots)), vms_(std::move(vms)) {}

  std::string object_path(const Uuid& uuid) const { return snapshots_ + "/" + uuid.to_string(); }
  std::string refs_path(const std::string& vm) const { return vms_ + "/" + vm + "/refs"; }
  std::string ref_path(const std::string& vm, const std::string& name) const {
    return refs_path(vm) + "/" + name;
  }
  Result<void> move_to_trash(const std::vector<std::string>& names,
                             std::vector<std::string>& trash) const;
  Result<void> check_files(const SnapshotObject& object) const;
  Result<void> check_ancestors(const Manifest& manifest) const;

  std::string snapshots_;
  std::string vms_;
};

}  // namespace snapshot
