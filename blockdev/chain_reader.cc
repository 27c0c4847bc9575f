#include "blockdev/chain_reader.h"

#include <algorithm>
#include <cstring>

#include "blockdev/content_map.h"

namespace blockdev {

Result<ChainRun> ChainReader::run_at(u64 offset, u64 length) {
  const LocatedExtent located = TRY(lookup_.at(offset, length));
  const Extent& extent = located.extent;
  ChainRun run;
  run.length_bytes = extent.length_bytes;
  run.depth = located.layer != nullptr ? located.depth : located.depth - 1;
  if (extent.kind == ExtentKind::computed) {
    run.kind = ChainRun::Kind::computed;
  } else if (extent.kind == ExtentKind::zero) {
    run.kind = located.layer != nullptr          ? ChainRun::Kind::zero
               : located.depth == layers_.size() ? ChainRun::Kind::absent
                                                 : ChainRun::Kind::beyond;
  } else {
    const ContentRun content = map_file(extent.fd, extent.file_offset, extent.length_bytes);
    run.kind = content.content == Content::zero ? ChainRun::Kind::hole : ChainRun::Kind::data;
    run.length_bytes = content.length_bytes;
    run.file_offset = extent.file_offset;
  }
  return run;
}

Result<void> ChainReader::read(u64 offset, std::span<u8> out) {
  const u64 size = size_bytes();
  const u64 inside = offset < size ? std::min<u64>(out.size(), size - offset) : 0;
  std::memset(out.data() + inside, 0, out.size() - inside);
  return inside == 0 ? Result<void>() : read_layers(layers_, offset, out.first(inside), scratch_);
}

// Every byte is the one before it, and the first is zero.
bool is_zero(std::span<const u8> bytes) {
  if (bytes.empty()) return true;
  return bytes[0] == 0 && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

}  // namespace blockdev
