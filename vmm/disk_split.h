// The disk half of a snapshot: each disk is split at T, and what lies where is written down for the
// manifest.
//
// Thread: the control thread; the machine is quiet.

#pragma once

#include "snapshot/tree.h"
#include "vmm/machine.h"
#include "vmm/persistent_disks.h"
#include "vmm/snapshot_job.h"
#include "vmm/snapshot_mark.h"

namespace vmm {

// Freezes what was written to an overlay disk so far. What lies below is taken from the overlay
// itself: a layer that no snapshot of `tree` knows was left behind by one that could not be written.
// Persistent disks are split before, all at once (DiskSwitch); here they only say where they stand.
// `at_start`: the disk's images, without layers.
Result<DiskMark> split_disk(const Machine& machine, const PersistentDisks& persistent,
                            std::size_t disk_index, const DiskMark& at_start,
                            snapshot::SnapshotTree& tree);

// Lists the layers that are to be written, and what the manifest will say of the disks.
void describe_disks(const Machine& machine, const std::vector<DiskMark>& disks, SnapshotJob& job);

}  // namespace vmm
