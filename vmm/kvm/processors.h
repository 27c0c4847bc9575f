// Processors: all vCPUs and the in-kernel interrupt controllers, timers and clock as one Stateful.
//
// They are one section of a snapshot because they can be saved and restored in one order only
// (processors.cc gives it), across all vCPUs.
//
// restore() serves a fresh VM and one that ran alike. It leaves every interrupt line low: devices
// raise theirs again afterwards.
//
// Thread: save, validate and restore on the control thread, all vCPUs parked and their pending
// exits finished. restore() allocates nothing.

#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "vmm/base/stateful.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/kvm.h"
#include "vmm/kvm/vcpu.h"
#include "vmm/kvm/vcpu_state.h"
#include "vmm/kvm/vm.h"

namespace kvm {

// An APIC id has 8 bits in xAPIC mode, 255 means all.
inline constexpr u32 kMaximumVcpus = 254;

// What the guest's clock shows after a restore: T plus the real time that went by, or T.
enum class ClockPolicy : u8 { realtime, frozen };

struct ProcessorsState {
  std::vector<CpuidEntry> cpuid;  // of vCPU 0
  std::vector<VcpuState> vcpus;
  StructBytes<kvm_irqchip> pic_master{};
  StructBytes<kvm_irqchip> pic_slave{};
  StructBytes<kvm_irqchip> ioapic{};
  StructBytes<kvm_pit_state2> pit{};
  u64 kvmclock_ns = 0;       // the guest's kvmclock at T
  u64 host_realtime_ns = 0;  // CLOCK_REALTIME at T
  u64 host_tsc = 0;          // the host's TSC at T
  u64 tsc_khz = 0;
  KvmKind kvm_kind = KvmKind::unknown;  // for messages

  static constexpr auto fields() {
    return std::tuple(base::field<1>("cpuid", &ProcessorsState::cpuid),
                      base::field<2>("vcpus", &ProcessorsState::vcpus),
                      base::field<3>("pic_master", &ProcessorsState::pic_master),
                      base::field<4>("pic_slave", &ProcessorsState::pic_slave),
                      base::field<5>("ioapic", &ProcessorsState::ioapic),
                      base::field<6>("pit", &ProcessorsState::pit),
                      base::field<7>("kvmclock_ns", &ProcessorsState::kvmclock_ns),
                      base::field<8>("host_realtime_ns", &ProcessorsState::host_realtime_ns),
                      base::field<9>("host_tsc", &ProcessorsState::host_tsc),
                      base::field<10>("tsc_khz", &ProcessorsState::tsc_khz),
                      base::field<11>("kvm_kind", &ProcessorsState::kvm_kind));
  }
};

class Processors final : public base::StatefulOf<ProcessorsState> {
 public:
  // `kvm` and `vm` outlive this object.
  static Result<std::unique_ptr<Processors>> create(const Kvm& kvm, Vm& vm, u32 vcpu_count);

  u32 vcpu_count() const { return static_cast<u32>(vcpus_.size()); }
  Vcpu& vcpu(u32 index) { return *vcpus_[index]; }
  std::span<const CpuidEntry> cpuid() const { return cpuid_; }
  // Whether this host lets the guest's TSC be set, found by trying. Where not, ClockPolicy::frozen
  // holds for kvmclock only.
  bool tsc_can_be_set() const { return tsc_can_be_set_; }

  // Tells a guest with kvmclock that it stood still, before it runs on after a pause: what it finds
  // late is no lockup. A restore does so by itself.
  void forgive_pause();

  void set_clock_policy(ClockPolicy policy) { clock_policy_ = policy; }
  void set_root_policy(RootPolicy policy) { root_policy_ = policy; }

  std::string state_name() const override { return "processors"; }
  // Fails only if KVM refuses what it granted before: then the process cannot go on.
  ProcessorsState save() const override;
  // The same for a caller that can say so.
  Result<ProcessorsState> try_save() const;
  Result<void> validate(const ProcessorsState& state) const override;
  Result<void> restore(const ProcessorsState& state) override;
  // Once more what PageZapper leaves undefined, after restore().
  Result<void> restore_run_state(const ProcessorsState& state, u32 vcpu_index);

 private:
  Processors(const Kvm& kvm, Vm& vm) : kvm_(kvm), vm_(vm) {}
  Result<void> add_vcpus(u32 vcpu_count);
  std::vector<CpuidEntry> host_model() const;
  Result<void> show_cpuid(std::span<const CpuidEntry> cpuid);
  bool any_vcpu_has_run() const;
  Result<void> check_controllers(const ProcessorsState& state) const;
  Result<void> check_tsc(const ProcessorsState& state) const;
  Result<void> save_controllers(ProcessorsState& state) const;
  Result<void> restore_controllers(const ProcessorsState& state);
  Result<void> restore_timers(const ProcessorsState& state);

  const Kvm& kvm_;
  Vm& vm_;
  std::vector<CpuidEntry> cpuid_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  std::vector<std::unique_ptr<VcpuStateTransfer>> transfers_;
  ClockPolicy clock_policy_ = ClockPolicy::realtime;
  RootPolicy root_policy_ = RootPolicy::keep;
  bool tsc_can_be_set_ = false;
  u64 tsc_khz_ = 0;
  u64 xcr0_ = 0;  // the state components that this host supports
};

}  // namespace kvm
