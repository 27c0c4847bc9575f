// Bus: which handler answers at an address. One Bus for ports, one for memory-mapped registers;
// both are built before the first vCPU runs and never change.
//
// Thread: read() and write() from any vCPU thread at once; handlers lock for themselves.

#pragma once

#include <span>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace devices {

class BusHandler {
 public:
  virtual ~BusHandler() = default;
  // `offset` is relative to the start of the handler's range; data.size() is 1, 2, 4 or 8, and the
  // access lies within the range. read() fills all of `data`.
  virtual void read(u64 offset, std::span<u8> data) = 0;
  virtual void write(u64 offset, std::span<const u8> data) = 0;
};

class Bus final {
 public:
  // REQUIRES: the range is free. `handler` outlives the bus.
  void add(u64 start, u64 length, BusHandler& handler);

  // Where nobody answers, a read gives all ones and a write goes nowhere, as on a PC's bus.
  void read(u64 address, std::span<u8> data) const;
  void write(u64 address, std::span<const u8> data) const;

 private:
  struct Range {
    u64 start;
    u64 length;
    BusHandler* handler;
  };
  const Range* find(u64 address, u64 length) const;

  std::vector<Range> ranges_;  // sorted by start
};

}  // namespace devices
