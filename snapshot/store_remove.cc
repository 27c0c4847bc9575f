// SnapshotStore: how a snapshot goes: its name first, then the object and what only it needed.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "snapshot/disk_heads.h"
#include "snapshot/file_lock.h"
#include "snapshot/object_graph.h"
#include "snapshot/store.h"
#include "snapshot/store_files.h"

namespace snapshot {
namespace {

// Busy when a process holds the object in any mode; else the exclusive lock. An object without lock
// file is a leftover that nobody can hold: store locks cover the moment in which it has none.
Result<base::Fd> lock_for_removal(const std::string& path) {
  Result<base::Fd> lock = base::open_file(path + "/" + kLockFile, O_RDWR | O_NOFOLLOW);
  if (!lock && lock.error().kind() == ErrorKind::not_found) return base::Fd();
  if (!lock) return lock;
  TRY(lock_file(*lock, LockMode::exclusive, LockWait::no));
  return lock;
}

}  // namespace

Result<void> SnapshotStore::remove(const std::string& vm, const std::string& name) const {
  const std::string what = fmt::format("snapshot \"{}\" of VM \"{}\"", name, vm);
  std::string trash;
  {
    const base::Fd store_lock = TRY(lock_store(snapshots_, LockMode::exclusive));
    // Under the lock: the name may have been given to another object since it was asked for.
    const Uuid uuid = TRY(resolve(vm, name));
    const ObjectGraph graph = TRY(ObjectGraph::read(snapshots_, vms_));
    const std::vector<std::string> children = graph.children_of(uuid);
    if (!children.empty()) {
      return make_error(ErrorKind::busy, "{} is needed by {}", what, children.front())
          .with_hint("delete that one first");
    }
    const std::vector<std::string>& heads = graph.heads_on(uuid);
    if (!heads.empty()) {
      return make_error(ErrorKind::busy, "{} is needed by {}", what, heads.front())
          .with_hint("what that VM's guest wrote since lies above it; quicksave rm drops it");
    }
    const std::string path = object_path(uuid);
    Result<base::Fd> lock = lock_for_removal(path);
    if (!lock && lock.error().kind() == ErrorKind::busy) {
      return make_error(ErrorKind::busy, "{} is in use by {}", what,
                        users_of_file(path + "/" + kLockFile))
          .with_hint("stop the virtual machine that runs from it, then try again");
    }
    if (!lock) return std::move(lock).error().with_context(what);
    // The name first: what is listed is whole.
    TRY(remove_file(refs_path(vm), name));
    if (graph.name_count(uuid) > 1 || ::access(path.c_str(), F_OK) != 0) return {};
    trash = snapshots_ + "/.trash-" + random_suffix();
    TRY(rename_new(path, trash));
    TRY(base::sync_directory(snapshots_));
  }
  remove_directory(trash);  // takes long for large files: without the store's lock
  TRY(gc());                // ancestors without a name, which only this one needed
  return {};
}

Result<void> SnapshotStore::remove_names(const std::string& vm) const {
  TRY(check_plain_name("VM name", vm));
  const std::vector<std::string> names = TRY(names_in(refs_path(vm)));
  for (const std::string& name : names) TRY(remove_file(refs_path(vm), name));
  const std::string directory = vms_ + "/" + vm;
  if (::access((directory + "/" + kDiskHeadsFile).c_str(), F_OK) == 0) {
    TRY(remove_file(directory, kDiskHeadsFile));
  }
  TRY(gc());
  return {};
}

// REQUIRES: the store's lock is held exclusively. A draft goes without that lock when its writer
// drops it: what is not there any more is no error.
Result<void> SnapshotStore::move_to_trash(const std::vector<std::string>& names,
                                          std::vector<std::string>& trash) const {
  for (const std::string& name : names) {
    const std::string path = snapshots_ + "/" + name;
    if (!lock_for_removal(path)) continue;
    std::string to = snapshots_ + "/.trash-" + random_suffix();
    const Result<void> moved = rename_new(path, to);
    if (!moved && moved.error().kind() == ErrorKind::not_found) continue;
    if (!moved) return moved;
    trash.push_back(std::move(to));
  }
  return trash.empty() ? Result<void>() : base::sync_directory(snapshots_);
}

Result<u32> SnapshotStore::remove_leftovers() const {
  std::vector<std::string> doomed;
  {
    const base::Fd store_lock = TRY(lock_store(snapshots_, LockMode::exclusive));
    std::vector<std::string> leftovers = TRY(names_in(snapshots_));
    std::erase_if(leftovers, [](const std::string& name) { return !is_leftover(name); });
    TRY(move_to_trash(leftovers, doomed));
  }
  for (const std::string& path : doomed) remove_directory(path);
  return static_cast<u32>(doomed.size());
}

Result<GarbageReport> SnapshotStore::gc() const {
  GarbageReport report;
  report.removed = TRY(remove_leftovers());
  std::vector<std::string> doomed;
  {
    const base::Fd store_lock = TRY(lock_store(snapshots_, LockMode::exclusive));
    const ObjectGraph graph = TRY(ObjectGraph::read(snapshots_, vms_));
    report.damaged = graph.damaged();
    std::vector<std::string> unneeded;
    for (const Uuid& uuid : graph.without_need([&](const Uuid& object) {
           return !lock_for_removal(object_path(object)).has_value();
         })) {
      unneeded.push_back(uuid.to_string());
    }
    TRY(move_to_trash(unneeded, doomed));
  }
  for (const std::string& path : doomed) remove_directory(path);
  report.removed += static_cast<u32>(doomed.size());
  return report;
}

}  // namespace snapshot
