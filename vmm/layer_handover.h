// LayerHandover: sealed disk layers that have become files, until the running disks read them from
// there.
//
// A layer becomes durable while the machine runs, and a disk's stack may change only while it is
// quiet: so the exchange waits here. Until then the layer is read from memory, which holds the same.
//
// Thread: the control thread.

#pragma once

#include <vector>

#include "blockdev/overlay.h"
#include "vmm/machine.h"

namespace vmm {

class LayerHandover final {
 public:
  void add(std::size_t disk_index, blockdev::SealedPointer sealed, blockdev::LayerPointer durable) {
    waiting_.push_back({disk_index, std::move(sealed), std::move(durable)});
  }

  // A layer's memory goes with its last holder. REQUIRES: the machine is quiet.
  void carry_out(Machine& machine) {
    for (const Exchange& exchange : waiting_) {
      machine.disks()[exchange.disk_index]->overlay->replace_with(exchange.sealed,
                                                                  exchange.durable);
    }
    waiting_.clear();
  }

 private:
  struct Exchange {
    std::size_t disk_index;
    blockdev::SealedPointer sealed;
    blockdev::LayerPointer durable;
  };

  std::vector<Exchange> waiting_;
};

}  // namespace vmm
