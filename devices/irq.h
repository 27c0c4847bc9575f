// IrqLine: the wire from a device to the interrupt controller.
//
// Thread: any; a leaf (calls nothing back, takes no device lock). The effect is complete when set()
// returns: an interrupt raised before a snapshot is in the snapshot.

#pragma once

#include "vmm/base/types.h"

namespace devices {

enum class IrqLevel : u8 { low, high };

class IrqLine {
 public:
  virtual ~IrqLine() = default;
  virtual void set(IrqLevel level) = 0;
  // One edge, for edge-triggered lines.
  void pulse() {
    set(IrqLevel::high);
    set(IrqLevel::low);
  }
};

}  // namespace devices
