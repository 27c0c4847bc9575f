// Chain: one request of the guest, as the device sees it: the parts it may read, then the parts it
// may write, each a checked range of guest RAM.
//
// A Chain is a copy of the descriptors, made and checked once; what the guest does to them
// afterwards has no effect. It owns no memory: the segments live in the queue's scratch space until
// the next chain is taken.

#pragma once

#include <sys/uio.h>

#include <optional>
#include <span>

#include "vmm/base/types.h"
#include "vmm/memory/guest_memory.h"

namespace devices::virtio {

struct Segment {
  Gpa gpa;
  u32 length_bytes = 0;  // never 0
};

// virtio 1.2, 2.7.4.2: the driver places readable parts before writable ones.
enum class ChainOrder : u8 { readable_first, mixed };

class Chain final {
 public:
  Chain(u16 head, std::span<const Segment> readable, std::span<const Segment> writable,
        ChainOrder order);

  u16 head() const { return head_; }
  ChainOrder order() const { return order_; }
  u64 readable_bytes() const { return readable_bytes_; }
  u64 writable_bytes() const { return writable_bytes_; }

  // Copies out of the readable part. False if it is shorter than that.
  [[nodiscard]] bool read(const memory::GuestMemory& memory, u64 offset, std::span<u8> out) const;
  // Copies into the writable part. False if it is shorter than that.
  [[nodiscard]] bool write(memory::GuestMemory& memory, u64 offset,
                           std::span<const u8> bytes) const;

  // Fills `out` with the host addresses of [offset, offset + length) of one part; returns how many
  // it took, or nothing if the part is shorter or `out` too small. The writable form marks dirty.
  std::optional<u32> readable_iovecs(const memory::GuestMemory& memory, u64 offset, u64 length,
                                     std::span<iovec> out) const;
  std::optional<u32> writable_iovecs(memory::GuestMemory& memory, u64 offset, u64 length,
                                     std::span<iovec> out) const;
  // Where byte `offset` of the writable part lies.
  std::optional<Gpa> writable_address(u64 offset) const;

 private:
  u16 head_;
  ChainOrder order_;
  std::span<const Segment> readable_;
  std::span<const Segment> writable_;
  u64 readable_bytes_;
  u64 writable_bytes_;
};

}  // namespace devices::virtio
