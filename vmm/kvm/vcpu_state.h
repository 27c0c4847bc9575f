// VcpuState: all that a vCPU remembers, and VcpuStateTransfer, which moves it out of KVM and back.
//
// The order of the calls is most of the truth here; each step says in the .cc what it must follow.
// A restore comes in two halves, because the LAPICs of all vCPUs must be in place before the IOAPIC
// of the VM is, and the timers' MSRs only after it.
//
// Thread: the vCPU does not run. The restore halves allocate nothing.

#pragma once

#include <array>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "vmm/base/codec.h"
#include "vmm/kvm/kvm.h"
#include "vmm/kvm/uapi.h"
#include "vmm/kvm/vcpu.h"

namespace kvm {

// A structure of the KVM API as bytes: its layout is the kernel's ABI and does not change.
template <class T>
using StructBytes = std::array<u8, sizeof(T)>;

template <class T>
T struct_of(const StructBytes<T>& bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

struct MsrValue {
  u32 index = 0;
  u64 value = 0;

  static constexpr auto fields() {
    return std::tuple(base::field<1>("index", &MsrValue::index),
                      base::field<2>("value", &MsrValue::value));
  }
  friend bool operator==(const MsrValue&, const MsrValue&) = default;
};

struct VcpuState {
  u32 mp_state = 0;  // KVM_MP_STATE_*
  StructBytes<kvm_regs> registers{};
  StructBytes<kvm_sregs2> special_registers{};  // PDPTRs only where its flags say so
  StructBytes<kvm_xcrs> extended_control_registers{};
  std::vector<u8> xsave;  // KVM_CAP_XSAVE2 bytes
  StructBytes<kvm_debugregs> debug_registers{};
  StructBytes<kvm_lapic_state> lapic{};
  StructBytes<kvm_vcpu_events> events{};
  std::vector<MsrValue> msrs;  // without the two below
  u64 tsc_deadline = 0;        // MSR_IA32_TSC_DEADLINE; 0: not armed
  u64 tsc = 0;                 // the guest's TSC at the instant of ProcessorsState::host_tsc

  static constexpr auto fields() {
    return std::tuple(
        base::field<1>("mp_state", &VcpuState::mp_state),
        base::field<2>("registers", &VcpuState::registers),
        base::field<3>("special_registers", &VcpuState::special_registers),
        base::field<4>("extended_control_registers", &VcpuState::extended_control_registers),
        base::field<5>("xsave", &VcpuState::xsave),
        base::field<6>("debug_registers", &VcpuState::debug_registers),
        base::field<7>("lapic", &VcpuState::lapic), base::field<8>("events", &VcpuState::events),
        base::field<9>("msrs", &VcpuState::msrs),
        base::field<10>("tsc_deadline", &VcpuState::tsc_deadline),
        base::field<11>("tsc", &VcpuState::tsc));
  }
  friend bool operator==(const VcpuState&, const VcpuState&) = default;
};

// As KVM_SET_SREGS takes them; the pending interrupt is in the events.
kvm_sregs special_registers_of(const VcpuState& state);

// Which MSRs a snapshot may hold on this host, ascending: what KVM lists, less what other parts of
// the state carry or what must not be written back.
std::vector<u32> snapshot_msrs(std::span<const u32> listed);

// What becomes of the page-table roots that KVM keeps for a vCPU when its state is restored.
enum class RootPolicy : u8 {
  keep,
  reload,  // KVM looks again at each page table that the guest changed without a TLB flush
};

class VcpuStateTransfer final {
 public:
  // `kvm` and `vcpu` outlive this object; `msrs` is from snapshot_msrs().
  VcpuStateTransfer(const Kvm& kvm, Vcpu& vcpu, std::vector<u32> msrs);

  // `host_tsc` is the instant T, the same for all vCPUs. REQUIRES: the vCPU has its CPUID; the
  // first call finds by trying which MSRs exist with it.
  Result<VcpuState> save(u64 host_tsc);
  // Changes nothing. `xcr0` are the state components that the host supports.
  Result<void> validate(const VcpuState& state, u64 xcr0) const;

  // REQUIRES for both: `state` passed validate().
  Result<void> restore_before_irqchip(const VcpuState& state, RootPolicy roots);
  Result<void> restore_after_irqchip(const VcpuState& state, u64 tsc_deadline);
  // The part that says where the vCPU goes on: registers, events, run state.
  Result<void> restore_run_state(const VcpuState& state);

  // Guest TSC minus host TSC. Absent where this KVM has no such attribute.
  std::optional<u64> tsc_offset() const;
  Result<void> set_tsc_offset(u64 offset);
  Result<u64> read_tsc() const;

  Vcpu& vcpu() const { return vcpu_; }

 private:
  kvm_msrs& msr_list() { return *reinterpret_cast<kvm_msrs*>(msr_buffer_.data()); }
  void append_msr(u32 index, u64 value);
  Result<void> find_working_msrs();
  Result<void> save_msrs(VcpuState& state);
  Result<void> save_special_registers(VcpuState& state);
  Result<void> drop_roots(const VcpuState& state);
  Result<void> restore_special_registers(const StructBytes<kvm_sregs2>& special_registers);
  Result<void> restore_xfd(const VcpuState& state);
  Result<void> restore_xsave(const VcpuState& state);
  Result<void> restore_registers(const VcpuState& state);
  Result<void> restore_msrs(const VcpuState& state, u64 tsc_deadline);

  const Kvm& kvm_;
  Vcpu& vcpu_;
  std::vector<u32> allowed_msrs_;
  std::vector<u32> working_msrs_;  // of these, what reads and writes back; empty: not yet known
  bool has_tsc_deadline_ = false;
  bool has_pkru_ = false;       // this host has protection keys
  std::vector<u8> msr_buffer_;  // a kvm_msrs with room for all of them and two more
  std::vector<u8> xsave_buffer_;
};

}  // namespace kvm
