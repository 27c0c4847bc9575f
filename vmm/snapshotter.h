// Snapshotter: takes a snapshot of the whole machine at one instant T, and makes it durable while
// the guest goes on.
//
// In the pause: device and processor state is copied, the changed pages of RAM are copied, the disks
// are split. Nothing is written to a file; what persistent disks go on in was made before. Afterwards
// a background thread writes memory, state and disk layers, the manifest last; the snapshot is listed
// when all of it is durable.
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
#include "vmm/layer_handover.h"
#include "vmm/machine.h"
#include "vmm/snapshot_job.h"
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
              std::vector<DiskMark> disks_at_start, PersistentDisks& persistent,
              LayerHandover& handover, control::Loop& loop);
  // Calls finish().
  ~Snapshotter();

  using PausedDone = std::function<void(const control::SnapshotResult&)>;
  using Durable = std::function<void(Result<control::SnapshotResult>)>;
  // As VmControl::create_snapshot(). `running` says whether the guest runs now; it is left as it was.
  void create(const control::SnapshotRequest& request, bool running, PausedDone paused_done,
              Durable durable);

  // A snapshot is being written.
  bool is_busy() const { return writing_ != nullptr; }

  // Waits for the snapshot that is being written, if any, and tells who waits for it.
  void finish();

 private:
  Result<std::unique_ptr<SnapshotJob>> prepare(const control::SnapshotRequest& request);
  Result<void> check_bases() const;
  // The pause. The machine is quiet.
  Result<void> capture(SnapshotJob& job);
  Error with_remedy(Error error) const;
  std::string unused_name();
  void start_writing(std::unique_ptr<SnapshotJob> job, Durable durable);
  void adopt_files(const SnapshotJob& job, snapshot::SnapshotNode& node);

  Machine& machine_;
  const snapshot::RamOrigin ram_origin_;
  snapshot::SnapshotTree& tree_;
  const snapshot::SnapshotStore& store_;
  const SnapshotIdentity identity_;
  const std::vector<DiskMark> disks_at_start_;
  PersistentDisks& persistent_;
  LayerHandover& handover_;
  control::Loop& loop_;
  memory::PageSet scratch_;

  // The snapshot that is being written; null if none is.
  std::unique_ptr<SnapshotJob> writing_;
  Durable durable_;
  std::thread writer_;
};

}  // namespace vmm
