#include "blockdev/write_fill.h"

#include <algorithm>
#include <cstring>

#include "blockdev/iovec_cursor.h"

namespace blockdev {

Result<void> WriteFill::collect(const DiskContent& content, const WriteStep& plan, ByteRange range,
                                ReadScratch& scratch, std::vector<FileRead>& reads) {
  const u64 end = range.offset + range.length;
  const u64 covered_end = plan.covered.offset + plan.covered.length;
  head_.start({plan.covered.offset, range.offset - plan.covered.offset});
  tail_.start({end, covered_end - end});
  TRY(collect_part(content, head_, scratch, reads));
  TRY(collect_part(content, tail_, scratch, reads));
  if (plan.host == HostState::fresh) {
    // Both must touch the request's bytes: it is one write.
    head_.first = head_.content_first == head_.content_last ? head_.last : head_.content_first;
    tail_.last = tail_.content_last;
  }
  head_.fill_zeros();
  tail_.fill_zeros();
  return {};
}

Result<void> WriteFill::collect_part(const DiskContent& content, Part& part, ReadScratch& scratch,
                                     std::vector<FileRead>& reads) {
  if (part.range.length == 0) return {};
  const u64 end = part.range.offset + part.range.length;
  Lookup lookup(content.layers);
  for (u64 at = part.range.offset; at < end;) {
    const u64 within = at - part.range.offset;
    // The last cluster may reach past the end of the disk. It may be the disk's one day.
    if (at >= content.size_bytes) {
      part.zeros.push_back({within, end - at});
      break;
    }
    const auto [extent, layer, depth] = TRY(lookup.at(at, std::min(end, content.size_bytes) - at));
    const std::span<u8> to = std::span(part.bytes).subspan(within, extent.length_bytes);
    if (extent.kind == ExtentKind::zero) {
      part.zeros.push_back({within, extent.length_bytes});
    } else {
      part.add_content(within, extent.length_bytes);
      if (extent.kind == ExtentKind::file) {
        reads.push_back({extent, to});
      } else {
        const iovec buffer{to.data(), to.size()};
        IovecCursor cursor({&buffer, 1});
        TRY(layer->read_computed(at, extent.length_bytes, cursor, scratch));
      }
    }
    at += extent.length_bytes;
  }
  return {};
}

void WriteFill::Part::start(ByteRange of_disk) {
  range = of_disk;
  if (bytes.size() < range.length) bytes.resize(range.length);
  first = 0;
  last = range.length;
  zeros.clear();
  content_first = content_last = 0;
}

void WriteFill::Part::add_content(u64 at, u64 length) {
  if (content_first == content_last) content_first = at;
  content_last = at + length;
}

void WriteFill::Part::fill_zeros() {
  for (const ByteRange& run : zeros) {
    const u64 from = std::max(run.offset, first);
    const u64 to = std::min(run.offset + run.length, last);
    if (from < to) std::memset(bytes.data() + from, 0, to - from);
  }
}

void WriteFill::shrink(u64 limit) {
  for (Part* part : {&head_, &tail_}) {
    if (part->bytes.size() <= limit) continue;
    part->bytes.clear();
    part->bytes.shrink_to_fit();
  }
}

}  // namespace blockdev
