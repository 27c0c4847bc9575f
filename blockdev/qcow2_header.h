// Qcow2Header: the header of an image, parsed and judged.
//
// Everything here is hostile. A header is refused for the reasons listed in reference/qcow2.md 1.6;
// what QEMU accepts with a shrug becomes a warning (1.7b). Sizes are checked before anything is
// derived from them or allocated for them.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "blockdev/qcow2_format.h"
#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace blockdev::qcow2 {

enum class Compression : u8 { deflate, zstd };

struct Header {
  u32 version = 3;
  u32 cluster_bits = 16;
  u64 size_bytes = 0;  // of the disk; rounded down to sectors
  bool has_extended_l2 = false;
  Compression compression = Compression::deflate;
  u64 l1_offset = 0;
  u64 l1_count = 0;            // entries that the size needs; the file may have more
  std::string backing_name;    // empty: none
  std::string backing_format;  // as the extension says it; empty: it says nothing
  u32 snapshot_count = 0;
  std::vector<std::string> warnings;
  WireHeader wire;  // as in the file; the version 3 fields of a version 2 image: what it means

  u64 cluster_bytes() const { return u64{1} << cluster_bits; }
};

Result<Header> read_header(const base::Fd& fd, u64 file_bytes);

// The header for qcow2_check.h: refused is only what leaves the tables unfindable, as there are
// versions, sizes and features. Where the tables lie and what is in them is the checker's to judge.
// A version 2 header comes with the version 3 fields that it means.
Result<WireHeader> read_header_to_check(const base::Fd& fd, u64 file_bytes);

}  // namespace blockdev::qcow2
