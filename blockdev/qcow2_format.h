// What lies in a qcow2 file: the header and the entries of its tables.
// Source: QEMU docs/interop/qcow2.rst, "Header" to "Extended L2 Entries"; field names are its own.
//
//   L1 entry            63 COPIED | 56..62 reserved | 9..55 offset of an L2 table | 0..8 reserved
//   L2 entry            63 COPIED | 62 COMPRESSED | 0..61 descriptor
//     standard          56..61 reserved | 9..55 host offset | 1..8 reserved | 0 ZERO (not extended)
//     compressed        x = 62 - (cluster_bits - 8): 0..x-1 host byte offset |
//                       x..61 further 512-byte sectors
//   refcount table entry  9..63 offset of a refcount block | 0..8 reserved
//   extended L2 entry   L2 entry, then a bitmap: 0..31 subcluster allocated, 32..63 reads as zero
//
// All integers are big-endian.

#pragma once

#include "vmm/base/wire.h"

namespace blockdev::qcow2 {

inline constexpr u32 kMagic = 0x514649fb;  // "QFI\xfb"
inline constexpr u32 kMinClusterBits = 9;
inline constexpr u32 kMaxClusterBits = 21;
inline constexpr u32 kMinExtendedClusterBits = 14;
inline constexpr u32 kHeaderBytesV2 = 72;
inline constexpr u32 kHeaderBytesV3 = 104;
inline constexpr u32 kMaxBackingNameBytes = 1023;
inline constexpr u64 kMaxL1Bytes = 32 * base::kMiB;            // as QEMU: QCOW_MAX_L1_SIZE
inline constexpr u64 kMaxRefcountTableBytes = 8 * base::kMiB;  // QCOW_MAX_REFTABLE_SIZE
inline constexpr u32 kMaxSnapshots = 65536;                    // QCOW_MAX_SNAPSHOTS
inline constexpr u32 kMaxRefcountOrder = 6;

struct WireHeader {
  be32 magic;                    //   0
  be32 version;                  //   4  2 or 3
  be64 backing_file_offset;      //   8  0: none
  be32 backing_file_size;        //  16
  be32 cluster_bits;             //  20
  be64 size;                     //  24  of the disk, in bytes
  be32 crypt_method;             //  32  0: none
  be32 l1_size;                  //  36  entries
  be64 l1_table_offset;          //  40
  be64 refcount_table_offset;    //  48
  be32 refcount_table_clusters;  //  56
  be32 nb_snapshots;             //  60
  be64 snapshots_offset;         //  64
  be64 incompatible_features;    //  72  from here on version 3
  be64 compatible_features;      //  80
  be64 autoclear_features;       //  88
  be32 refcount_order;           //  96
  be32 header_length;            // 100
  u8 compression_type = 0;       // 104  if header_length > 104
  u8 padding[7] = {};            // 105
};
static_assert(base::WireType<WireHeader> && sizeof(WireHeader) == 112);

enum IncompatibleFeature : u64 {
  kDirty = 1 << 0,
  kCorrupt = 1 << 1,
  kExternalDataFile = 1 << 2,
  kCompressionType = 1 << 3,
  kExtendedL2 = 1 << 4,
};
inline constexpr u64 kKnownIncompatible =
    kDirty | kCorrupt | kExternalDataFile | kCompressionType | kExtendedL2;
inline constexpr u64 kLazyRefcounts = 1 << 0;  // compatible
inline constexpr u64 kAutoclearBitmaps = 1 << 0;

enum ExtensionType : u32 {
  kExtensionEnd = 0,
  kExtensionBackingFormat = 0xe2792aca,
  kExtensionFeatureNames = 0x6803f857,
  kExtensionBitmaps = 0x23852875,
  kExtensionEncryption = 0x0537be77,
  kExtensionDataFile = 0x44415441,
};

struct WireExtension {
  be32 type;    // 0
  be32 length;  // 4  of the data that follows; the next one starts at a multiple of 8
};
static_assert(base::WireType<WireExtension> && sizeof(WireExtension) == 8);

struct WireFeatureName {
  u8 type = 0;         // 0  0 incompatible, 1 compatible, 2 autoclear
  u8 bit = 0;          // 1
  char name[46] = {};  // 2
};
static_assert(base::WireType<WireFeatureName> && sizeof(WireFeatureName) == 48);

inline constexpr u64 kCopied = u64{1} << 63;
inline constexpr u64 kCompressed = u64{1} << 62;
inline constexpr u64 kZero = 1;
inline constexpr u64 kOffsetMask = 0x00fffffffffffe00;
inline constexpr u64 kL1Reserved = 0x7f000000000001ff;
inline constexpr u64 kL2Reserved = 0x3f000000000001fe;
inline constexpr u64 kRefcountTableReserved = 0x1ff;

}  // namespace blockdev::qcow2
