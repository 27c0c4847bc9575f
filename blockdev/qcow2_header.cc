#include "blockdev/qcow2_header.h"

#include <endian.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "blockdev/block_backend.h"
#include "blockdev/qcow2_extensions.h"
#include "blockdev/qcow2_map.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

template <class... Args>
Error corrupt(fmt::format_string<Args...> format, Args&&... args) {
  return make_error(ErrorKind::corrupt, format, std::forward<Args>(args)...);
}
template <class... Args>
Error unsupported(fmt::format_string<Args...> format, Args&&... args) {
  return make_error(ErrorKind::unsupported, format, std::forward<Args>(args)...);
}

Result<WireHeader> read_wire_header(const base::Fd& fd, u64 file_bytes) {
  if (file_bytes < kHeaderBytesV2) {
    return corrupt("not a qcow2 image: {} bytes are too few for a header", file_bytes)
        .with_hint("say format=raw if it is a raw image");
  }
  u8 bytes[sizeof(WireHeader)] = {};
  TRY(base::read_exactly(fd, std::span(bytes, std::min<u64>(sizeof bytes, file_bytes)), 0));
  WireHeader wire;
  std::memcpy(&wire, bytes, sizeof wire);
  if (wire.magic != kMagic) {
    return corrupt("not a qcow2 image: it starts with {:#010x}", u32{wire.magic})
        .with_hint("say format=raw if it is a raw image");
  }
  if (wire.version != 2 && wire.version != 3) {
    return unsupported("qcow2 version {} (2 and 3 are known)", u32{wire.version});
  }
  if (wire.version == 3 && file_bytes < kHeaderBytesV3) {
    return corrupt("{} bytes are too few for a version 3 header", file_bytes);
  }
  if (wire.version == 2) {
    wire.incompatible_features = 0;
    wire.compatible_features = 0;
    wire.autoclear_features = 0;
    wire.refcount_order = 4;
    wire.header_length = kHeaderBytesV2;
  }
  if (wire.header_length <= kHeaderBytesV3) wire.compression_type = 0;
  return wire;
}

Result<void> check_sizes(const WireHeader& wire, std::vector<std::string>& warnings) {
  const u32 bits = wire.cluster_bits;
  if (bits < kMinClusterBits || bits > kMaxClusterBits) {
    return corrupt("cluster_bits {} is not between {} and {}", bits, kMinClusterBits,
                   kMaxClusterBits);
  }
  const u32 length = wire.header_length;
  if (wire.version == 3 && (length < kHeaderBytesV3 || length > (u64{1} << bits))) {
    return corrupt("header_length {} is not between {} and the cluster size", length,
                   kHeaderBytesV3);
  }
  if (length % 8 != 0) {
    warnings.push_back(fmt::format("header_length {} is not a multiple of 8", length));
  }
  if (wire.refcount_order > kMaxRefcountOrder) {
    return corrupt("refcount_order {} is larger than {}", u32{wire.refcount_order},
                   kMaxRefcountOrder);
  }
  return {};
}

Result<void> check_features(const WireHeader& wire, const Extensions& extensions,
                            std::vector<std::string>& warnings) {
  const u64 features = wire.incompatible_features;
  if (const u64 unknown = features & ~kKnownIncompatible; unknown != 0) {
    return unsupported("it needs features that are not known here: {}",
                       extensions.describe_incompatible(unknown));
  }
  if (wire.crypt_method != 0 || extensions.has_encryption) {
    return unsupported("the image is encrypted (method {})", u32{wire.crypt_method})
        .with_hint("encrypt the host's file system instead; qemu-img convert decrypts an image");
  }
  if ((features & kExternalDataFile) != 0 || extensions.has_data_file) {
    return unsupported("its data lies in an external data file")
        .with_hint("qemu-img convert makes one file of both");
  }
  const bool has_type = (features & kCompressionType) != 0;
  if (has_type != (wire.compression_type != 0)) {
    return corrupt("compression type {} does not fit to the feature bit, which is {}",
                   wire.compression_type, has_type ? "set" : "not set");
  }
  if (wire.compression_type > 1) {
    return unsupported("compression type {} (0 zlib and 1 zstd are known)", wire.compression_type);
  }
  if ((features & kExtendedL2) != 0 && wire.cluster_bits < kMinExtendedClusterBits) {
    return corrupt("subclusters of less than 512 bytes: extended L2 entries need cluster_bits {}",
                   kMinExtendedClusterBits);
  }
  if ((features & kDirty) != 0) {
    warnings.push_back("it was not closed properly (dirty bit); its refcounts are not used here");
  }
  if ((features & kCorrupt) != 0) warnings.push_back("it is marked corrupt; check it");
  if (extensions.has_bitmaps && (wire.autoclear_features & kAutoclearBitmaps) == 0) {
    warnings.push_back("its dirty bitmaps are out of date");
  }
  return {};
}

// Offset, bytes and name of a table in the file.
struct MetadataArea {
  std::string_view name;
  u64 offset;
  u64 bytes;
};

u64 refcount_table_bytes(const WireHeader& wire) {
  return u64{wire.refcount_table_clusters} << wire.cluster_bits;
}

// All of each, whether the file has it or not.
std::array<MetadataArea, 4> metadata_areas(const WireHeader& wire) {
  constexpr u64 kSnapshotEntryBytes = 40;  // without its variable part
  return {{{"header", 0, u64{1} << wire.cluster_bits},
           {"L1 table", wire.l1_table_offset, u64{wire.l1_size} * sizeof(be64)},
           {"refcount table", wire.refcount_table_offset, refcount_table_bytes(wire)},
           {"snapshot table", wire.snapshots_offset,
            wire.nb_snapshots == 0 ? u64{0} : kSnapshotEntryBytes}}};
}

Result<void> check_table_sizes(const WireHeader& wire) {
  const u64 refcount_bytes = refcount_table_bytes(wire);
  if (wire.refcount_table_clusters == 0) return corrupt("no refcount table");
  if (refcount_bytes > kMaxRefcountTableBytes) {
    return corrupt("refcount table of {} bytes (at most {} are read)", refcount_bytes,
                   kMaxRefcountTableBytes);
  }
  if (wire.nb_snapshots > kMaxSnapshots) {
    return corrupt("{} internal snapshots (at most {})", u32{wire.nb_snapshots}, kMaxSnapshots);
  }
  return {};
}

Result<void> check_areas(const WireHeader& wire, u64 l1_used_bytes, u64 file_bytes) {
  const u64 cluster = u64{1} << wire.cluster_bits;
  TRY(check_table_sizes(wire));
  const std::array<MetadataArea, 4> extents = metadata_areas(wire);
  // Of each, what is used must be in the file.
  std::array<MetadataArea, 4> used = extents;
  used[0].bytes = wire.header_length;
  used[1].bytes = l1_used_bytes;
  used[2].bytes = sizeof(be64);
  for (const MetadataArea& area : used) {
    if (area.bytes == 0) continue;
    if (!base::is_aligned(area.offset, cluster)) {
      return corrupt("{} at {:#x} is not at a multiple of the cluster size", area.name,
                     area.offset);
    }
    if (!base::contains(file_bytes, area.offset, area.bytes)) {
      return corrupt("{} at {:#x} outside file (size {:#x})", area.name, area.offset, file_bytes);
    }
  }
  for (const MetadataArea& a : extents) {
    for (const MetadataArea& b : extents) {
      if (&a < &b && base::overlaps(a.offset, a.bytes, b.offset, b.bytes)) {
        return corrupt("{} and {} overlap at {:#x}", a.name, b.name, std::max(a.offset, b.offset));
      }
    }
  }
  return {};
}

// Nothing here reads refcounts. But who wrote a refcount block over another table wrote none of the
// two, and an image that says so is not worth trusting. What the file ends before is zero: no
// block.
Result<void> check_refcount_table(const base::Fd& fd, const WireHeader& wire, u64 file_bytes) {
  const u64 cluster = u64{1} << wire.cluster_bits;
  const u64 bytes = std::min(refcount_table_bytes(wire), file_bytes - wire.refcount_table_offset);
  std::vector<u64> table(bytes / sizeof(u64));
  TRY_CONTEXT(
      base::read_exactly(fd, {reinterpret_cast<u8*>(table.data()), table.size() * sizeof(u64)},
                         wire.refcount_table_offset),
      "refcount table");
  for (const u64 word : table) {
    if (word == 0) continue;  // nearly all, so they are not turned round one by one
    const u64 entry = be64toh(word);
    if ((entry & kRefcountTableReserved) != 0) {
      return corrupt("refcount table entry {:#018x}: reserved bits are set", entry);
    }
    if (!base::is_aligned(entry, cluster)) {
      return corrupt("refcount block at {:#x} is not at a multiple of the cluster size", entry);
    }
    for (const MetadataArea& area : metadata_areas(wire)) {
      if (base::overlaps(area.offset, area.bytes, entry, cluster)) {
        return corrupt("{} and refcount block overlap at {:#x}", area.name, entry);
      }
    }
  }
  return {};
}

// The L1 entries that the size needs; checks that the table has them.
Result<u64> check_l1(const WireHeader& wire, u64 size_bytes) {
  const Geometry geometry(wire.cluster_bits, (wire.incompatible_features & kExtendedL2) != 0);
  const u64 needed = base::divide_up(size_bytes, geometry.bytes_per_l2_table());
  if (u64{wire.l1_size} * sizeof(be64) > kMaxL1Bytes || needed * sizeof(be64) > kMaxL1Bytes) {
    return corrupt("L1 table of {} entries for a disk of {} bytes (at most {} entries are read)",
                   u32{wire.l1_size}, size_bytes, kMaxL1Bytes / sizeof(be64));
  }
  if (wire.l1_size < needed) {
    return corrupt("L1 table has {} entries, a disk of {} bytes needs {}", u32{wire.l1_size},
                   size_bytes, needed);
  }
  return needed;
}

Result<std::vector<u8>> read_first_cluster(const base::Fd& fd, const WireHeader& wire,
                                           u64 file_bytes) {
  std::vector<u8> cluster(u64{1} << wire.cluster_bits);
  TRY(base::read_exactly(fd, std::span(cluster).first(std::min<u64>(cluster.size(), file_bytes)),
                         0));
  return cluster;
}

}  // namespace

Result<Header> read_header(const base::Fd& fd, u64 file_bytes) {
  Header header;
  const WireHeader wire = TRY(read_wire_header(fd, file_bytes));
  TRY(check_sizes(wire, header.warnings));
  const std::vector<u8> first_cluster = TRY(read_first_cluster(fd, wire, file_bytes));
  const Extensions extensions = TRY(parse_extensions(wire, first_cluster));
  TRY(check_features(wire, extensions, header.warnings));

  header.wire = wire;
  header.version = wire.version;
  header.cluster_bits = wire.cluster_bits;
  header.size_bytes = base::align_down(wire.size, 512);
  if (header.size_bytes == 0) return corrupt("the disk in it has no bytes");
  if (header.size_bytes > kMaxDiskBytes) {
    return unsupported("a disk of {} bytes (at most {})", header.size_bytes, kMaxDiskBytes);
  }
  if (header.size_bytes != wire.size) {
    header.warnings.push_back(
        fmt::format("size {} is not a multiple of 512; the last {} bytes are "
                    "left out",
                    u64{wire.size}, wire.size - header.size_bytes));
  }
  header.has_extended_l2 = (wire.incompatible_features & kExtendedL2) != 0;
  header.compression = wire.compression_type == 1 ? Compression::zstd : Compression::deflate;
  header.l1_offset = wire.l1_table_offset;
  header.l1_count = TRY(check_l1(wire, header.size_bytes));
  TRY(check_areas(wire, header.l1_count * sizeof(be64), file_bytes));
  TRY(check_refcount_table(fd, wire, file_bytes));
  header.backing_name = TRY(parse_backing_name(wire, first_cluster));
  header.backing_format = extensions.backing_format;
  header.snapshot_count = wire.nb_snapshots;
  if (header.snapshot_count > 0) {
    header.warnings.push_back(
        fmt::format("its {} internal snapshots are not looked at", header.snapshot_count));
  }
  return header;
}

Result<WireHeader> read_header_to_check(const base::Fd& fd, u64 file_bytes) {
  std::vector<std::string> warnings;  // what makes them is looked at in full by the checker
  const WireHeader wire = TRY(read_wire_header(fd, file_bytes));
  TRY(check_sizes(wire, warnings));
  const std::vector<u8> first_cluster = TRY(read_first_cluster(fd, wire, file_bytes));
  const Extensions extensions = TRY(parse_extensions(wire, first_cluster));
  TRY(check_features(wire, extensions, warnings));
  if (extensions.has_bitmaps && (wire.autoclear_features & kAutoclearBitmaps) != 0) {
    return unsupported("its dirty bitmaps cannot be checked yet")
        .with_hint("qemu-img check counts them; qemu-img bitmap --remove removes one");
  }
  TRY(check_l1(wire, base::align_down(wire.size, 512)));
  TRY(check_table_sizes(wire));
  const u64 cluster = u64{1} << wire.cluster_bits;
  for (const MetadataArea& area : metadata_areas(wire)) {
    if (area.bytes != 0 && !base::is_aligned(area.offset, cluster)) {
      return corrupt("{} at {:#x} is not at a multiple of the cluster size", area.name,
                     area.offset);
    }
  }
  return wire;
}

}  // namespace blockdev::qcow2
