// check_image: whether all of a qcow2 image's tables agree with each other, as `qemu-img check`
// judges it, number by number.
//
// Every reference to a host cluster is counted (header, L1 and L2 tables, data, refcount
// structures, internal snapshots) and compared with the refcount that the image states. A
// corruption is what can lose data: a refcount too low, a reference out of the file, a COPIED flag
// that says the wrong thing, reserved bits. Two users of one cluster show as a refcount too low. A
// leak is a refcount too high: space that nobody uses.
//
// The image is never written. Data is not read; that a compressed cluster can be decompressed is
// not part of a check. Images with dirty bitmaps are refused.
//
// Memory: that of ReferenceCounts (at most 512 MiB; 64 KiB for each GiB in use in clusters of
// 64 KiB), an L1 table of at most 32 MiB, a refcount table of at most 8 MiB, a snapshot table of at
// most 64 MiB, one L2 table and one refcount block. Time: an L2 table is read as often as it is
// referred to, so a hostile image can make it long.
//
// Thread: any.

#pragma once

#include <string>
#include <vector>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace blockdev::qcow2 {

struct CheckReport {
  // What a report names one by one; further ones are only counted.
  static constexpr u64 kMaxFindings = 1000;

  u64 corruptions = 0;         // the sum of the next four
  u64 bad_references = 0;      // entries of tables that make no sense, or point out of the file
  u64 bad_structures = 0;      // in the refcount table and its blocks
  u64 too_low_refcounts = 0;   // fewer than there are references
  u64 wrong_copied_flags = 0;  // COPIED is not what the refcount says
  u64 leaks = 0;
  u64 check_errors = 0;  // clusters of which nothing can be said
  std::vector<std::string> findings;
  u64 image_end_offset = 0;  // behind the last cluster in use
  u64 total_clusters = 0;    // of the disk, as the next three
  u64 allocated_clusters = 0;
  u64 fragmented_clusters = 0;  // not behind their predecessor
  u64 compressed_clusters = 0;
};

// An Error: the file is not an image that can be checked, or cannot be read.
Result<CheckReport> check_image(const base::Fd& fd);

}  // namespace blockdev::qcow2
