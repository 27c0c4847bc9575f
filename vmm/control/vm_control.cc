#include "vmm/control/vm_control.h"

namespace control {

std::string_view name_of(VmState state) {
  switch (state) {
    case VmState::created: return "created";
    case VmState::running: return "running";
    case VmState::paused: return "paused";
    case VmState::halted: return "halted";
  }
  return "unknown";
}

}  // namespace control
