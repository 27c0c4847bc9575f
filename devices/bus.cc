#include "devices/bus.h"

#include <algorithm>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace devices {

void Bus::add(u64 start, u64 length, BusHandler& handler) {
  for (const Range& range : ranges_) {
    CHECK(!base::overlaps(range.start, range.length, start, length));
  }
  ranges_.push_back({start, length, &handler});
  std::ranges::sort(ranges_, {}, &Range::start);
}

void Bus::read(u64 address, std::span<u8> data) const {
  const Range* range = find(address, data.size());
  if (range == nullptr) {
    std::ranges::fill(data, u8{0xff});
    return;
  }
  range->handler->read(address - range->start, data);
}

void Bus::write(u64 address, std::span<const u8> data) const {
  const Range* range = find(address, data.size());
  if (range != nullptr) range->handler->write(address - range->start, data);
}

const Bus::Range* Bus::find(u64 address, u64 length) const {
  auto after = std::ranges::upper_bound(ranges_, address, {}, &Range::start);
  if (after == ranges_.begin()) return nullptr;
  const Range& range = *std::prev(after);
  return base::contains(range.length, address - range.start, length) ? &range : nullptr;
}

}  // namespace devices
