// The internal snapshots of a qcow2 image, as far as a check needs them: where their tables lie.
// Source: QEMU docs/interop/qcow2.rst, "Snapshots".

#pragma once

#include <vector>

#include "blockdev/qcow2_format.h"
#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace blockdev::qcow2 {

struct WireSnapshot {
  be64 l1_table_offset;   //  0
  be32 l1_size;           //  8  entries
  be16 id_bytes;          // 12
  be16 name_bytes;        // 14
  be32 date_seconds;      // 16
  be32 date_nanoseconds;  // 20
  be64 vm_clock;          // 24
  be32 vm_state_bytes;    // 32
  be32 extra_data_bytes;  // 36
                          // 40  extra data, id, name; the next entry is at a multiple of 8
};
static_assert(base::WireType<WireSnapshot> && sizeof(WireSnapshot) == 40);

struct Snapshot {
  u64 l1_offset = 0;
  u64 l1_size = 0;
  bool is_incomplete = false;  // lacks extra data that version 3 requires
};

struct SnapshotTable {
  std::vector<Snapshot> entries;
  u64 bytes = 0;  // of the table in the file
};

// What lies past the end of the file is zeros. An Error if the table is larger than 64 MiB.
Result<SnapshotTable> read_snapshot_table(const base::Fd& fd, u64 file_bytes,
                                          const WireHeader& wire);

}  // namespace blockdev::qcow2
