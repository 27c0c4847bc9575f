#include "blockdev/qcow2_snapshots.h"

#include "blockdev/qcow2_refcounts.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

constexpr u64 kMaxTableBytes = 64 * base::kMiB;  // QCOW_MAX_SNAPSHOTS_SIZE
constexpr u64 kMaxExtraBytes = 1024;             // QCOW_MAX_SNAPSHOT_EXTRA_DATA
constexpr u64 kRequiredExtraBytes = 16;          // 64-bit size of the VM's state, size of the disk

}  // namespace

Result<SnapshotTable> read_snapshot_table(const base::Fd& fd, u64 file_bytes,
                                          const WireHeader& wire) {
  SnapshotTable table;
  if (wire.snapshots_offset >> 63 != 0) {
    return make_error(ErrorKind::corrupt, "snapshot table at {:#x}", u64{wire.snapshots_offset});
  }
  for (u32 i = 0; i < wire.nb_snapshots; ++i) {
    const u64 at = base::align_up(table.bytes, 8);
    const auto error = [&](std::string_view why) {
      return make_error(ErrorKind::corrupt, "snapshot table at {:#x}, entry {}: {}",
                        u64{wire.snapshots_offset}, i, why);
    };
    WireSnapshot entry;
    TRY(read_padded(fd, file_bytes, {reinterpret_cast<u8*>(&entry), sizeof entry},
                    wire.snapshots_offset + at));
    if (entry.extra_data_bytes > kMaxExtraBytes) return error("too much extra data");
    const u64 variable = u64{entry.extra_data_bytes} + entry.id_bytes + entry.name_bytes;
    table.bytes = at + sizeof entry + variable;
    if (table.bytes > kMaxTableBytes) return error("the table is larger than 64 MiB");
    Snapshot snapshot;
    snapshot.l1_offset = entry.l1_table_offset;
    snapshot.l1_size = entry.l1_size;
    snapshot.is_incomplete = wire.version >= 3 && entry.extra_data_bytes < kRequiredExtraBytes;
    table.entries.push_back(snapshot);
  }
  return table;
}

}  // namespace blockdev::qcow2
