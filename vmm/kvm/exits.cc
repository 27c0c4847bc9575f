#include "vmm/kvm/exits.h"

#include <fmt/format.h>

#include "vmm/kvm/uapi.h"

namespace kvm {

namespace {

std::string_view suberror_name(u32 suberror) {
  switch (suberror) {
    case KVM_INTERNAL_ERROR_EMULATION: return "KVM cannot emulate this instruction";
    case KVM_INTERNAL_ERROR_SIMUL_EX: return "two exceptions at once";
    case KVM_INTERNAL_ERROR_DELIVERY_EV: return "an exit while an event was delivered";
    case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: return "unexpected exit of the processor";
    default: return "cause unknown";
  }
}

struct Describe {
  std::string operator()(const PortExit& exit) const {
    return fmt::format("{} port {:#x}, {} x {} bytes",
                       exit.direction == Direction::in ? "read of" : "write to", exit.port,
                       exit.count, exit.size);
  }
  std::string operator()(const MmioExit& exit) const {
    return fmt::format("{} {:#x}, {} bytes",
                       exit.direction == Direction::in ? "read of" : "write to", exit.gpa.value,
                       exit.data.size());
  }
  std::string operator()(const HaltExit&) const { return "halt"; }
  std::string operator()(const ShutdownExit&) const { return "shutdown (triple fault)"; }
  std::string operator()(const InterruptedExit&) const { return "interrupted"; }
  std::string operator()(const SystemEventExit& exit) const {
    return fmt::format("system event {}", exit.type);
  }
  std::string operator()(const InternalErrorExit& exit) const {
    std::string text = fmt::format("KVM internal error {} ({}) at rip {:#x}", exit.suberror,
                                   suberror_name(exit.suberror), exit.rip);
    if (exit.instruction_size != 0) text += ", instruction bytes";
    for (u32 i = 0; i < exit.instruction_size; ++i) {
      text += fmt::format(" {:02x}", exit.instruction[i]);
    }
    return text;
  }
  std::string operator()(const FailEntryExit& exit) const {
    return fmt::format("the processor refused the guest's state, reason {:#x}", exit.reason);
  }
  std::string operator()(const UnknownExit& exit) const {
    return fmt::format("unknown KVM exit {} at rip {:#x}", exit.reason, exit.rip);
  }
};

}  // namespace

std::string describe(const VcpuExit& exit) { return std::visit(Describe{}, exit); }

}  // namespace kvm
