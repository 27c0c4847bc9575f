#include "blockdev/content_map.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "vmm/base/ranges.h"

namespace blockdev {
namespace {

MapStep map_extent(const Extent& extent, ContentRuns& runs) {
  if (extent.kind != ExtentKind::file) {
    const Content content = extent.kind == ExtentKind::computed ? Content::data : Content::zero;
    return runs.add({content, extent.length_bytes}) ? MapStep::more : MapStep::full;
  }
  for (u64 done = 0; done < extent.length_bytes;) {
    const ContentRun run =
        map_file(extent.fd, extent.file_offset + done, extent.length_bytes - done);
    if (!runs.add(run)) return MapStep::full;
    done += run.length_bytes;
  }
  return MapStep::more;
}

}  // namespace

ContentRun map_file(int fd, u64 offset, u64 length) {
  const auto from = static_cast<off_t>(offset);
  const off_t data = ::lseek(fd, from, SEEK_DATA);
  if (data < 0) return {errno == ENXIO ? Content::zero : Content::data, length};
  // The end of a file may lie within a sector: the sector is data.
  const u64 hole_bytes = base::align_down(static_cast<u64>(data) - offset, kSectorBytes);
  if (hole_bytes != 0) return {Content::zero, std::min(hole_bytes, length)};
  const off_t hole = ::lseek(fd, data, SEEK_HOLE);
  if (hole < 0) return {Content::data, length};
  const u64 data_bytes = base::align_up(static_cast<u64>(hole) - offset, kSectorBytes);
  return {Content::data, std::min(std::max<u64>(data_bytes, kSectorBytes), length)};
}

bool ContentRuns::add(ContentRun run) {
  if (!runs_.empty() && runs_.back().content == run.content) {
    runs_.back().length_bytes += run.length_bytes;
    return true;
  }
  if (runs_.size() >= max_runs_) return false;
  runs_.push_back(run);
  return true;
}

Result<MapStep> map_layers(const LayerList& layers, u64 offset, u64 length, ContentRuns& runs) {
  Lookup lookup(layers);
  const u64 end = offset + length;
  while (offset < end) {
    const LocatedExtent located = TRY(lookup.at(offset, end - offset));
    if (map_extent(located.extent, runs) == MapStep::full) return MapStep::full;
    offset += located.extent.length_bytes;
  }
  return MapStep::more;
}

}  // namespace blockdev
