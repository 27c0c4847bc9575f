// What a stack of layers is known to read as, without reading it: for block status (nbdkit's
// extents), for copies that leave zeros out.
//
// A file of the stack that is sparse is asked where its holes are. What must be computed
// (compressed clusters, memory) counts as data.
//
// Thread: all calls from any thread. What is written meanwhile may or may not be seen.

#pragma once

#include <vector>

#include "blockdev/block_backend.h"
#include "blockdev/layer.h"

namespace blockdev {

// Takes runs in order, makes neighbours of one kind one, and is full before it would have more than
// `max_runs`.
class ContentRuns final {
 public:
  ContentRuns(u64 max_runs, std::vector<ContentRun>& runs) : max_runs_(max_runs), runs_(runs) {}

  // False: it is full, and the run was not taken.
  bool add(ContentRun run);

 private:
  const u64 max_runs_;
  std::vector<ContentRun>& runs_;
};

// At least one sector of `offset`, `length` (whole sectors) of a file. Where the file cannot tell
// (a block device), all is data.
ContentRun map_file(int fd, u64 offset, u64 length);

enum class MapStep : u8 { more, full };

// REQUIRES: the range lies within the disk whose stack this is.
Result<MapStep> map_layers(const LayerList& layers, u64 offset, u64 length, ContentRuns& runs);

}  // namespace blockdev
