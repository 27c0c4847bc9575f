// PersistentDisks: all mode=persist disks of a VM: they are switched to fresh files together, and
// DiskSwitch: one such switch, from before the pause until it is durable.
//
// What a flush promises rests on all files below the one that is written and on the record of which
// that is (snapshot/disk_heads.h). So the gates close before a switch and open when it is settled:
// everything below is flushed and closed, the record is durable; for a snapshot also its manifest.
// If settling fails, flushes fail until a later try, which resuming the VM makes too.
//
// Files that nothing needs any more go when the record that does not name them is durable. So a
// process that is killed at any moment leaves a record whose files are all there and hold
// everything that was flushed.
//
// Thread: the control thread, except as noted.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "blockdev/executor.h"
#include "snapshot/disk_heads.h"
#include "snapshot/tree.h"
#include "vmm/base/mutex.h"
#include "vmm/persistent_disk.h"

namespace vmm {

class PersistentDisks;

class DiskSwitch final {
 public:
  // Not switched: the fresh files go and the gates open. Switched and not settled: that follows in
  // the background.
  ~DiskSwitch();
  DiskSwitch(const DiskSwitch&) = delete;
  DiskSwitch& operator=(const DiskSwitch&) = delete;

  // Both REQUIRE: the machine is quiet; once.
  void split();
  // `target` is in `tree`.
  void rebase_on(const snapshot::SnapshotNode& target, snapshot::SnapshotTree& tree);

  // From any thread: waits until it is done or has failed; the gates are open then.
  void settle();

 private:
  friend class PersistentDisks;
  explicit DiskSwitch(PersistentDisks& disks) : disks_(disks) {}

  enum class State : u8 { prepared, switched, settled };

  PersistentDisks& disks_;
  State state_ = State::prepared;
  std::vector<WrittenFile> fresh_;  // one for each disk
  std::vector<WrittenFile> left_;   // by a revert
};

class PersistentDisks final {
 public:
  explicit PersistentDisks(std::string vm_directory) : vm_directory_(std::move(vm_directory)) {}
  // Waits for what happens in the background.
  ~PersistentDisks();
  PersistentDisks(const PersistentDisks&) = delete;
  PersistentDisks& operator=(const PersistentDisks&) = delete;

  // Before the VM runs.
  void add(PersistentDisk::Parts parts);
  bool empty() const { return disks_.empty(); }
  // Null: not a persistent disk.
  const PersistentDisk* find(std::size_t slot) const;

  // Makes the fresh files and closes the gates; flushes what is there, so that little is left to do
  // at T. `owner`: the snapshot that will have what is written now.
  Result<std::unique_ptr<DiskSwitch>> prepare_split(const snapshot::Uuid& owner);
  Result<std::unique_ptr<DiskSwitch>> prepare_rebase(const snapshot::SnapshotNode& target);

  // From any thread. `path` goes with the next record.
  void retire(std::string path);
  // Of `layers`, which something has let go of: the files that split() froze for a snapshot that was
  // not made, unless a disk or a snapshot of `tree` still needs them.
  void retire_unneeded(const std::vector<MarkedLayer>& layers, snapshot::SnapshotTree& tree);
  // Everything below what is written is closed, and the record says so, when this returns.
  Result<void> settle();
  // The same in the background; until then no flush ends.
  void begin_to_settle();
  // As above if the last time has failed.
  void try_again();

  // Flushes and closes all. REQUIRES: the machine is quiet and stays so.
  Result<void> close();
  // Which disks are in which files of the VM's directory, for people.
  std::vector<std::string> describe_heads() const;

 private:
  friend class DiskSwitch;

  // What a disk consists of, for who works in the background.
  struct Chain {
    u32 slot;
    std::string name;
    u64 size_bytes;
    DiskFile file;
    std::shared_ptr<blockdev::WritableImage> image;
    DiskMark below;
  };
  void note_chains();
  Result<void> make_durable(const std::vector<Chain>& chains) const;
  Result<void> name_what_lies_below(const PersistentDisk& disk) const;
  static snapshot::DiskHead head_of(const Chain& chain);
  void hold();
  void release();
  void settle_later(std::vector<WrittenFile> left);

  const std::string vm_directory_;
  std::vector<std::unique_ptr<PersistentDisk>> disks_;

  base::Mutex settle_mutex_;  // one at a time
  base::Mutex mutex_;
  std::vector<Chain> chains_ GUARDED_BY(mutex_);
  std::vector<std::string> retired_ GUARDED_BY(mutex_);
  bool has_failed_ GUARDED_BY(mutex_) = false;
  blockdev::ThreadExecutor background_;  // the last member: it uses the others
};

}  // namespace vmm
