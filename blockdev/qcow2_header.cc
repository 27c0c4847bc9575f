#include "blockdev/qcow2_header.h"

#include <algorithm>
#include <cstring>

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
struct Area {
  std::string_view name;
  u64 offset;
  u64 bytes;
};

Result<void> check_areas(const WireHeader& wire, u64 l1_used_bytes, u64 file_bytes) {
  const u64 cluster = u64{1} << wire.cluster_bits;
  const u64 refcount_bytes = u64{wire.refcount_table_clusters} * cluster;
  if (wire.refcount_table_clusters == 0) return corrupt("no refcount table");
  if (refcount_bytes > kMaxRefcountTableBytes) {
    return corrupt("refcount table of {} bytes (at most {} are read)", refcount_bytes,
                   kMaxRefcountTableBytes);
  }
  if (wire.nb_snapshots > kMaxSnapshots) {
    return corrupt("{} internal snapshots (at most {})", u32{wire.nb_snapshots}, kMaxSnapshots);
  }
  const Area areas[] = {
      {"header", 0, wire.header_length},
      {"L1 table", wire.l1_table_offset, l1_used_bytes},
      {"refcount table", wire.refcount_table_offset, sizeof(be64)},
      {"snapshot table", wire.snapshots_offset, wire.nb_snapshots == 0 ? u64{0} : u64{40}},
  };
  for (const Area& area : areas) {
    if (area.bytes == 0) continue;
    if (!base::is_aligned(area.offset, cluster)) {
      return corrupt("{} at {:#x} is not at a multiple of the cluster size", area.name,
                     area.offset);
    }
    if (!base::contains(file_bytes, area.offset, area.bytes)) {
      return corrupt("{} at {:#x} outside file (size {:#x})", area.name, area.offset, file_bytes);
    }
  }
  const Area extents[] = {{"header", 0, cluster},
                          {"L1 table", wire.l1_table_offset, u64{wire.l1_size} * sizeof(be64)},
                          {"refcount table", wire.refcount_table_offset, refcount_bytes},
                          areas[3]};
  for (const Area& a : extents) {
    for (const Area& b : extents) {
      if (&a < &b && base::overlaps(a.offset, a.bytes, b.offset, b.bytes)) {
        return corrupt("{} and {} overlap at {:#x}", a.name, b.name, std::max(a.offset, b.offset));
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

}  // namespace

Result<Header> read_header(const base::Fd& fd, u64 file_bytes) {
  Header header;
  const WireHeader wire = TRY(read_wire_header(fd, file_bytes));
  TRY(check_sizes(wire, header.warnings));
  std::vector<u8> first_cluster(u64{1} << wire.cluster_bits);
  TRY(base::read_exactly(
      fd, std::span(first_cluster).first(std::min<u64>(first_cluster.size(), file_bytes)), 0));
  const Extensions extensions = TRY(parse_extensions(wire, first_cluster));
  TRY(check_features(wire, extensions, header.warnings));

  header.version = wire.version;
  header.cluster_bits = wire.cluster_bits;
  header.size_bytes = base::align_down(wire.size, 512);
  if (header.size_bytes == 0) return corrupt("the disk in it has no bytes");
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
  header.backing_name = TRY(parse_backing_name(wire, first_cluster));
  header.backing_format = extensions.backing_format;
  header.snapshot_count = wire.nb_snapshots;
  if (header.snapshot_count > 0) {
    header.warnings.push_back(
        fmt::format("its {} internal snapshots are not looked at", header.snapshot_count));
  }
  return header;
}

}  // namespace blockdev::qcow2
