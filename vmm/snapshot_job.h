// SnapshotJob: one snapshot on its way to the disk: what was captured at T, and the files that are
// made from it.
//
// All that can fail happens in write(). What follows publication is comfort: a file that cannot be
// opened again (too many open files) leaves the copy in memory where it is, and the snapshot is made.
//
// Thread: write() on a background thread, which then owns the job alone; the rest on the control
// thread, before and after.

#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "blockdev/layer_writer.h"
#include "blockdev/overlay.h"
#include "snapshot/memory_copy.h"
#include "snapshot/state_file.h"
#include "snapshot/store.h"
#include "vmm/control/vm_control.h"
#include "vmm/persistent_disks.h"
#include "vmm/stopwatch.h"

namespace vmm {

struct SnapshotJob {
  // A layer to write: one of the new snapshot's, or one that an earlier attempt left behind.
  struct PendingLayer {
    std::size_t disk;
    blockdev::SealedPointer sealed;
    blockdev::LayerList below;
    blockdev::BackingName backing;
    std::string file;
    // From write():
    snapshot::DiskLayer written;
    blockdev::LayerPointer durable;  // the file as a layer; null if it could not be opened
  };

  // A file that a persistent disk was written to: flushed, closed, and given to the snapshot.
  struct FrozenLayer {
    std::size_t disk;
    FrozenPointer frozen;
    std::string file;  // its name in the snapshot, unless it is the user's own
    // From write():
    std::optional<snapshot::DiskLayer> written;
  };

  explicit SnapshotJob(snapshot::SnapshotDraft d) : draft(std::move(d)) {}

  // Writes memory, layers and state, then publishes. If it fails, nothing appears.
  void write(const snapshot::SnapshotStore& store);

  Stopwatch stopwatch;
  control::SnapshotResult result;
  snapshot::SnapshotDraft draft;
  snapshot::Manifest manifest;
  std::shared_ptr<const snapshot::MemoryImage> image;
  std::vector<snapshot::Section> sections;
  std::vector<PendingLayer> layers;
  std::vector<FrozenLayer> frozen;
  PersistentDisks* persistent = nullptr;
  // Settled by write(), so that the guest's flushes end when the manifest is durable, or when it is
  // known that there will be none.
  std::unique_ptr<DiskSwitch> disk_switch;
  std::optional<snapshot::CopyBuffer> buffer;

  // From write():
  Result<void> outcome;
  std::shared_ptr<const snapshot::SnapshotObject> object;
  std::shared_ptr<const snapshot::MemoryImage> view;  // of the file; null if it could not be opened

 private:
  Result<void> write_files(const snapshot::SnapshotStore& store);
  Result<void> write_layers();
  Result<void> take_frozen_files();
  // Null: what lies below is no new layer.
  const std::string* new_layer_below(const FrozenLayer& layer) const;
  void hand_over_frozen_files();
  void open_files(const snapshot::SnapshotStore& store);
};

}  // namespace vmm
