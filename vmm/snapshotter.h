// Snapshotter: takes a snapshot of the whole machine at one instant T, and makes it durable while
// the guest goes on.
//
// In the pause: device and processor state is copied, the changed pages of RAM are copied, the disks
// are split. Nothing is written to a file. Afterwards a background thread writes memory, state and
// disk layers, the manifest last; the snapshot is listed when all of it is durable.
//
// If writing fails, the snapshot is gone from the list and from this process, the guest is as if it
// had never been asked for, and the split of the disks stays as a layer without a name: the next
// snapshot writes it too.
//
// Thread: the control thread.

#pragma once

#include <memory>
#include <thread>

#include "snapshot/memory_copy.h"
#include "snapshot/store.h"
#include "snapshot/tree.h"
#include "vmm/control/loop.h"
#include "vmm/control/vm_control.h"
#include "vmm/machine.h"
#include "vmm/snapshot_mark.h"

namespace vmm {

struct SnapshotIdentity {
  std::string vm_name;
  snapshot::HostIdentity host;
};

class Snapshotter final {
 public:
  // All outlive the snapshotter. `disks_at_start`: the user's images, without layers.
  Snapshotter(Machine& machine, snapshot::RamOrigin ram_origin, snapshot::SnapshotTree& tree,
              const snapshot::SnapshotStore& store, SnapshotIdentity identity,
              std::vector<DiskMark> disks_at_start, control::Loop& loop);
  // Waits for the background thread.
  ~Snapshotter();

  using PausedDone = std::function<void(const control::SnapshotResult&)>;
  using Durable = std::function<void(Result<control::SnapshotResult>)>;
  // As VmControl::create_snapshot(). `running` says whether the guest runs now; it is left as it was.
  void create(const control::SnapshotRequest& request, bool running, PausedDone paused_done,
              Durable durable);

  // A snapshot is being written.
  bool is_busy() const { return writer_.joinable(); }

  // The machine stands still for some other reason: layers that have become files are now read from
  // there, and their memory goes.
  void machine_is_quiet();

 private:
  struct Job;  // what the background thread needs, all of it immutable

  Result<std::unique_ptr<Job>> prepare(const control::SnapshotRequest& request);
  // The pause. The machine is quiet.
  Result<void> capture(Job& job);
  Error with_remedy(Error error) const;
  Result<DiskMark> split(std::size_t disk_index);
  const MarkedLayer* find_layer(std::size_t disk_index, const blockdev::LayerPointer& layer);
  void describe_disks(const SnapshotMark& mark, Job& job);
  std::string unused_name();
  void start_writing(std::unique_ptr<Job> job, Durable durable);
  void finish(Job& job, Result<std::shared_ptr<const snapshot::SnapshotObject>> written,
              const Durable& durable);
  Result<void> adopt_files(Job& job, std::shared_ptr<const snapshot::SnapshotObject> object);

  struct Replacement {
    std::size_t disk;
    blockdev::SealedPointer sealed;
    blockdev::LayerPointer durable;
  };

  Machine& machine_;
  const snapshot::RamOrigin ram_origin_;
  snapshot::SnapshotTree& tree_;
  const snapshot::SnapshotStore& store_;
  const SnapshotIdentity identity_;
  const std::vector<DiskMark> disks_at_start_;
  control::Loop& loop_;
  memory::PageSet scratch_;
  std::vector<Replacement> replacements_;
  std::thread writer_;
};

}  // namespace vmm
