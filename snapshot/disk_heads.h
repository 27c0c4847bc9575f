// DiskHeads: where the newest content of a VM's persistent disks is, once a snapshot has frozen the
// files they were started on: the record vms/VM/disks.json. FORMAT.md describes the file.
//
// A head is the active layer, a qcow2 file in the VM's directory. What the record names is kept by
// the store (object_graph.h) and refused for writing (SnapshotStore::check_may_write), whether the
// VM runs or not: the data that its guest has flushed rests on it.
//
// Invariant: the file on disk is one whole record or another.
// Thread: any; one writer of a VM's record at a time.

#pragma once

#include <string>
#include <vector>

#include "snapshot/manifest.h"
#include "vmm/base/result.h"

namespace snapshot {

inline constexpr char kDiskHeadsFile[] = "disks.json";

struct DiskHead {
  std::string file;                 // the active layer, in the VM's directory
  std::vector<std::string> frozen;  // below it, bottom first: in the VM's directory, no snapshot's
  Disk below;                       // below these
  friend bool operator==(const DiskHead&, const DiskHead&) = default;
};

// Returns when it is durable, the names of the files beside it too.
Result<void> write_disk_heads(const std::string& vm_directory, const std::vector<DiskHead>& heads);
// Empty where there is no record.
Result<std::vector<DiskHead>> read_disk_heads(const std::string& vm_directory);

}  // namespace snapshot
