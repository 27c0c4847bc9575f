// What a qcow2 image is before it is written: everything that must be right is looked at here.
//
// The refcounts of data are not: a slice of an L2 table is compared with them before the first
// write through it.

#pragma once

#include <array>
#include <vector>

#include "blockdev/qcow2_allocator.h"
#include "blockdev/qcow2_header.h"
#include "blockdev/waiting_io.h"
#include "vmm/base/fd.h"

namespace blockdev::qcow2 {

struct OpenedTables {
  Header header;
  u64 file_bytes = 0;
  std::vector<u64> l1;              // l1_count of the header
  std::vector<u64> refcount_table;  // all of it
  std::vector<u64> metadata;        // clusters, sorted, each once
  Allocator::Start start;
  std::array<u8, 512> header_sector{};
};

Result<OpenedTables> open_for_writing(const base::Fd& fd, WaitingIo& io);

}  // namespace blockdev::qcow2
