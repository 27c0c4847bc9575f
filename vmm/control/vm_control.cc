#include "vmm/control/vm_control.h"

namespace control {

std::string_view name_of(VmState state) {
  switch (state) {
    case VmState::unconfigured: return "unconfigured";
    case VmState::created: return "created";
    case VmState::running: return "running";
    case VmState::paused: return "paused";
    case VmState::halted: return "halted";
  }
  return "unknown";
}

Result<void> VmControl::configure(const MachineConfig&) {
  const VmInfo now = info();
  return make_error(ErrorKind::wrong_state, "{} is {}: its configuration is fixed since its start",
                    now.name, name_of(now.state))
      .with_hint("quicksave run starts another VM");
}

}  // namespace control
