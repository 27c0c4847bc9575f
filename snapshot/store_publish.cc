// SnapshotStore: how a snapshot appears.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "snapshot/file_lock.h"
#include "snapshot/safe_open.h"
#include "snapshot/store.h"
#include "snapshot/store_files.h"
#include "vmm/base/check.h"
#include "vmm/base/directories.h"

namespace snapshot {

SnapshotDraft::~SnapshotDraft() {
  if (directory_) remove_directory(path_);
}

Result<SnapshotDraft> SnapshotStore::begin(const std::string& vm, const std::string& name) const {
  TRY(check_plain_name("VM name", vm));
  TRY(check_plain_name("snapshot name", name));
  if (::access(ref_path(vm, name).c_str(), F_OK) == 0) {
    return make_error(ErrorKind::exists, "VM \"{}\" has a snapshot \"{}\" already", vm, name)
        .with_hint("choose another name, or delete that one first");
  }
  const Uuid uuid = Uuid::random();
  const std::string path =
      fmt::format("{}/.{}.tmp-{}", snapshots_, uuid.to_string(), random_suffix());
  const base::Fd store_lock = TRY(lock_store(snapshots_, LockMode::shared));
  if (::mkdir(path.c_str(), 0700) != 0) return errno_error("create \"{}\"", path);
  const auto fill = [&]() -> Result<SnapshotDraft> {
    base::Fd directory = TRY(open_private_directory(path));
    base::Fd lock = TRY(base::open_file_at(directory, kLockFile, O_RDWR | O_CREAT | O_EXCL, 0600));
    TRY(lock_file(lock, LockMode::exclusive, LockWait::no));
    return SnapshotDraft(uuid, path, std::move(directory), std::move(lock));
  };
  Result<SnapshotDraft> draft = fill();
  if (!draft) remove_directory(path);
  return draft;
}

Result<SnapshotObject> SnapshotStore::publish(SnapshotDraft draft, Manifest manifest) const {
  CHECK(manifest.uuid == draft.uuid_);
  const std::string text = manifest.serialize();
  // What was just made is read as a stranger would: nothing appears that open() would refuse.
  manifest = TRY_CONTEXT(Manifest::parse(text), "new snapshot");
  TRY(seal_files(draft.path_, draft.directory_));
  {
    const base::Fd file =
        TRY(base::open_file_at(draft.directory_, kManifestFile, O_WRONLY | O_CREAT | O_EXCL, 0400));
    TRY_CONTEXT(
        base::write_exactly(file, {reinterpret_cast<const u8*>(text.data()), text.size()}, 0),
        "write manifest");
    TRY_CONTEXT(base::sync_file(file), "write manifest");
  }
  TRY(base::sync_file(draft.directory_));
  // From exclusive to shared without a moment between: from here on it is an object in use.
  TRY(lock_file(draft.lock_, LockMode::shared, LockWait::no));
  const std::string path = object_path(draft.uuid_);
  SnapshotObject object(std::move(manifest), path, TRY(draft.directory_.duplicate()),
                        TRY(draft.lock_.duplicate()));
  TRY(check_files(object));
  TRY(check_ancestors(object.manifest()));
  // An object without a name is garbage to gc(), and a draft whose path it has just read is gone.
  const base::Fd store_lock = TRY(lock_store(snapshots_, LockMode::shared));
  TRY(rename_new(draft.path_, path));
  draft.path_ = path;  // whose destructor would remove it, until the name stands
  TRY(base::sync_directory(snapshots_));
  const Manifest& made = object.manifest();
  TRY(base::make_directories(refs_path(made.vm)));
  // The VM's directory was made by who started it, in a hurry and without fsync.
  TRY(base::sync_directory(vms_ + "/" + made.vm));
  TRY(base::sync_directory(vms_));
  TRY_CONTEXT(write_new_file(refs_path(made.vm), made.name, made.uuid.to_string() + "\n"),
              fmt::format("name snapshot \"{}\" of VM \"{}\"", made.name, made.vm));
  draft.directory_.reset();
  return object;
}

}  // namespace snapshot
