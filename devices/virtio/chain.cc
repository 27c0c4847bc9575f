#include "devices/virtio/chain.h"

#include <algorithm>
#include <cstring>

#include "vmm/base/ranges.h"

namespace devices::virtio {
namespace {

u64 total_bytes(std::span<const Segment> segments) {
  u64 total = 0;  // at most 256 times 4 GiB
  for (const Segment& segment : segments) total += segment.length_bytes;
  return total;
}

// Calls visit(gpa, length) for each piece of [offset, offset + length), until it returns false.
// REQUIRES: the range lies within the segments.
template <class Visit>
bool for_each_piece(std::span<const Segment> segments, u64 offset, u64 length, Visit visit) {
  for (const Segment& segment : segments) {
    if (length == 0) break;
    if (offset >= segment.length_bytes) {
      offset -= segment.length_bytes;
      continue;
    }
    const u64 piece = std::min(length, segment.length_bytes - offset);
    // The segment was checked to lie in RAM, so the sum does not wrap.
    if (!visit(Gpa{segment.gpa.value + offset}, piece)) return false;
    length -= piece;
    offset = 0;
  }
  return true;
}

template <class HostBytes>
std::optional<u32> to_iovecs(std::span<const Segment> segments, u64 offset, u64 length,
                             std::span<iovec> out, HostBytes host_bytes) {
  u32 count = 0;
  const bool all = for_each_piece(segments, offset, length, [&](Gpa gpa, u64 piece) {
    if (count == out.size()) return false;
    const std::optional<memory::GuestBytes> bytes = host_bytes(gpa, piece);
    if (!bytes) return false;
    out[count++] = bytes->to_iovec();
    return true;
  });
  if (!all) return std::nullopt;
  return count;
}

}  // namespace

Chain::Chain(u16 head, std::span<const Segment> readable, std::span<const Segment> writable,
             ChainOrder order)
    : head_(head),
      order_(order),
      readable_(readable),
      writable_(writable),
      readable_bytes_(total_bytes(readable)),
      writable_bytes_(total_bytes(writable)) {}

bool Chain::read(const memory::GuestMemory& memory, u64 offset, std::span<u8> out) const {
  if (!base::contains(readable_bytes_, offset, out.size())) return false;
  return for_each_piece(readable_, offset, out.size(), [&](Gpa gpa, u64 piece) {
    const bool done = memory.read(gpa, out.first(piece));
    out = out.subspan(piece);
    return done;
  });
}

bool Chain::write(memory::GuestMemory& memory, u64 offset, std::span<const u8> bytes) const {
  if (!base::contains(writable_bytes_, offset, bytes.size())) return false;
  return for_each_piece(writable_, offset, bytes.size(), [&](Gpa gpa, u64 piece) {
    const bool done = memory.write(gpa, bytes.first(piece));
    bytes = bytes.subspan(piece);
    return done;
  });
}

std::optional<u32> Chain::readable_iovecs(const memory::GuestMemory& memory, u64 offset, u64 length,
                                          std::span<iovec> out) const {
  if (!base::contains(readable_bytes_, offset, length)) return std::nullopt;
  return to_iovecs(readable_, offset, length, out,
                   [&](Gpa gpa, u64 piece) { return memory.readable(gpa, piece); });
}

std::optional<u32> Chain::writable_iovecs(memory::GuestMemory& memory, u64 offset, u64 length,
                                          std::span<iovec> out) const {
  if (!base::contains(writable_bytes_, offset, length)) return std::nullopt;
  return to_iovecs(writable_, offset, length, out,
                   [&](Gpa gpa, u64 piece) { return memory.writable(gpa, piece); });
}

std::optional<Gpa> Chain::writable_address(u64 offset) const {
  if (!base::contains(writable_bytes_, offset, 1)) return std::nullopt;
  std::optional<Gpa> address;
  for_each_piece(writable_, offset, 1, [&](Gpa gpa, u64) {
    address = gpa;
    return true;
  });
  return address;
}

}  // namespace devices::virtio
