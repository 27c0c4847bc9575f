#include "vmm/kvm/processors.h"

#include <time.h>
#include <x86intrin.h>

#include <algorithm>

#include "vmm/base/check.h"
#include "vmm/base/log.h"
#include "vmm/kvm/clock.h"
#include "vmm/kvm/ioctl.h"

namespace kvm {

namespace {

constexpr u8 kPitModeUnset = 0xff;  // a channel that was never programmed

Result<void> read_irqchip(const base::Fd& vm, u32 id, StructBytes<kvm_irqchip>& out) {
  std::memcpy(out.data(), &id, sizeof id);  // kvm_irqchip::chip_id
  TRY(KVM_CALL(vm, KVM_GET_IRQCHIP, out.data()));
  return {};
}

// KVM's documentation, "KVM-specific MSRs": bit 0 says that the guest has enabled it.
bool has_kvmclock(const VcpuState& state) {
  return std::ranges::any_of(state.msrs, [](const MsrValue& msr) {
    return msr.index == MSR_KVM_SYSTEM_TIME_NEW && (msr.value & 1) != 0;
  });
}

// The guest's watchdogs shall not take the pause for a lockup. EINVAL: it has no kvmclock.
void forgive_pause(const Vcpu& vcpu) { ::ioctl(vcpu.fd().get(), KVM_KVMCLOCK_CTRL, 0); }

}  // namespace

Result<std::unique_ptr<Processors>> Processors::create(const Kvm& kvm, Vm& vm, u32 vcpu_count) {
  if (vcpu_count == 0 || vcpu_count > std::min(kvm.capabilities().maximum_vcpus, kMaximumVcpus)) {
    return make_error(ErrorKind::usage, "{} processors asked for; this host allows 1 to {}",
                      vcpu_count, std::min(kvm.capabilities().maximum_vcpus, kMaximumVcpus));
  }
  std::unique_ptr<Processors> processors(new Processors(kvm, vm));
  processors->xcr0_ = supported_xcr0(kvm.supported_cpuid());
  TRY(processors->add_vcpus(vcpu_count));
  TRY(processors->show_cpuid(processors->host_model()));
  return processors;
}

// The TSC is tried on the first vCPU while it is alone: the others join its time line when they are
// created.
Result<void> Processors::add_vcpus(u32 vcpu_count) {
  const std::vector<u32> msrs = snapshot_msrs(kvm_.msr_indices());
  for (u32 index = 0; index < vcpu_count; ++index) {
    vcpus_.push_back(TRY(Vcpu::create(kvm_, vm_, index)));
    transfers_.push_back(std::make_unique<VcpuStateTransfer>(kvm_, *vcpus_.back(), msrs));
    if (index == 0) tsc_can_be_set_ = TRY(kvm::tsc_can_be_set(*transfers_[0]));
  }
  const int khz = ::ioctl(vcpus_[0]->fd().get(), KVM_GET_TSC_KHZ, 0);
  if (khz <= 0) return errno_error("KVM_GET_TSC_KHZ");
  tsc_khz_ = static_cast<u64>(khz);
  return {};
}

std::vector<CpuidEntry> Processors::host_model() const {
  CpuModel model;
  model.vcpu_count = vcpu_count();
  model.tsc_deadline = tsc_can_be_set_ && kvm_.capabilities().tsc_deadline ? TscDeadline::shown
                                                                           : TscDeadline::hidden;
  return guest_cpuid(kvm_.supported_cpuid(), model);
}

Result<void> Processors::show_cpuid(std::span<const CpuidEntry> cpuid) {
  cpuid_.assign(cpuid.begin(), cpuid.end());
  std::vector<CpuidEntry> own = cpuid_;
  for (const std::unique_ptr<Vcpu>& vcpu : vcpus_) {
    set_apic_id(own, vcpu->index());
    TRY(vcpu->set_cpuid(own));
    if (kvm_.capabilities().enforce_pv_cpuid) TRY(vcpu->hide_undeclared_features());
  }
  return {};
}

ProcessorsState Processors::save() const {
  Result<ProcessorsState> state = try_save();
  if (!state) base::log(base::LogLevel::error, "save processors: {}", state.error().message());
  CHECK(state.has_value());
  return std::move(*state);
}

// The interrupt controllers before the LAPICs: an interrupt on its way while we read is then in
// both at worst. The clock first: it is T.
Result<ProcessorsState> Processors::try_save() const {
  ProcessorsState state;
  const ClockReading now = TRY(read_clock(vm_.fd()));
  state.kvmclock_ns = now.kvmclock_ns;
  state.host_realtime_ns = now.realtime_ns;
  state.host_tsc = now.tsc;
  state.tsc_khz = tsc_khz_;
  state.kvm_kind = kvm_.kind();
  state.cpuid = cpuid_;
  TRY(save_controllers(state));
  for (const std::unique_ptr<VcpuStateTransfer>& transfer : transfers_) {
    state.vcpus.push_back(
        TRY_CONTEXT(transfer->save(now.tsc), fmt::format("vCPU {}", transfer->vcpu().index())));
  }
  return state;
}

Result<void> Processors::save_controllers(ProcessorsState& state) const {
  TRY(KVM_CALL(vm_.fd(), KVM_GET_PIT2, state.pit.data()));
  TRY(read_irqchip(vm_.fd(), KVM_IRQCHIP_PIC_MASTER, state.pic_master));
  TRY(read_irqchip(vm_.fd(), KVM_IRQCHIP_PIC_SLAVE, state.pic_slave));
  TRY(read_irqchip(vm_.fd(), KVM_IRQCHIP_IOAPIC, state.ioapic));
  return {};
}

Result<void> Processors::validate(const ProcessorsState& state) const {
  if (state.vcpus.size() != vcpus_.size()) {
    return make_error(ErrorKind::unsupported, "taken with {} processors, this machine has {}",
                      state.vcpus.size(), vcpus_.size());
  }
  if (state.cpuid.empty() || state.cpuid.size() > kMaximumCpuidEntries) {
    return make_error(ErrorKind::corrupt, "{} CPUID entries", state.cpuid.size());
  }
  // What the vCPUs show already, KVM has accepted; the path of a revert allocates nothing here.
  if (state.cpuid != cpuid_) {
    TRY(check_cpuid_supported(state.cpuid, host_model()));
    if (any_vcpu_has_run()) {
      return make_error(ErrorKind::unsupported,
                        "taken with another CPUID than the running machine shows");
    }
  }
  TRY(check_controllers(state));
  TRY(check_tsc(state));
  for (const std::unique_ptr<VcpuStateTransfer>& transfer : transfers_) {
    const u32 index = transfer->vcpu().index();
    TRY_CONTEXT(transfer->validate(state.vcpus[index], xcr0_), fmt::format("vCPU {}", index));
  }
  return {};
}

// What KVM would believe without looking: which chip the bytes are of, and PIT channels.
Result<void> Processors::check_controllers(const ProcessorsState& state) const {
  const auto chip_id = [](const StructBytes<kvm_irqchip>& bytes) {
    return struct_of<kvm_irqchip>(bytes).chip_id;
  };
  if (chip_id(state.pic_master) != KVM_IRQCHIP_PIC_MASTER ||
      chip_id(state.pic_slave) != KVM_IRQCHIP_PIC_SLAVE ||
      chip_id(state.ioapic) != KVM_IRQCHIP_IOAPIC) {
    return make_error(ErrorKind::corrupt, "interrupt controllers are mixed up");
  }
  const kvm_pit_state2 pit = struct_of<kvm_pit_state2>(state.pit);
  for (const kvm_pit_channel_state& channel : pit.channels) {
    const bool mode_exists = channel.mode <= 5 || channel.mode == kPitModeUnset;
    if (channel.count > 0x1'0000 || !mode_exists || channel.rw_mode > 4) {
      return make_error(ErrorKind::corrupt, "a PIT channel has a state that does not exist");
    }
  }
  if (state.kvm_kind > KvmKind::pvm) return make_error(ErrorKind::corrupt, "unknown kind of KVM");
  return {};
}

// A guest measures the TSC once, when it boots. What two measurements of one processor differ by,
// KVM takes for the same too.
Result<void> Processors::check_tsc(const ProcessorsState& state) const {
  constexpr u64 kTolerance = 4000;  // 250 parts in a million
  if (state.tsc_khz == 0) return make_error(ErrorKind::corrupt, "a TSC of 0 kHz");
  const u64 difference = std::max(state.tsc_khz, tsc_khz_) - std::min(state.tsc_khz, tsc_khz_);
  if (difference <= tsc_khz_ / kTolerance) return {};
  return make_error(ErrorKind::unsupported,
                    "taken where the TSC runs at {} kHz; here it runs at {} kHz, and the guest's "
                    "timers would be wrong by as much",
                    state.tsc_khz, tsc_khz_);
}

// Lines low, because loading the IOAPIC forgets which were high. All LAPICs before the IOAPIC: it
// delivers what is pending in it when it is loaded, and a LAPIC loaded after that would wipe the
// interrupt and leave remote IRR set for ever. Timers' MSRs after both.
Result<void> Processors::restore(const ProcessorsState& state) {
  TRY(validate(state));
  if (state.cpuid != cpuid_) TRY(show_cpuid(state.cpuid));
  vm_.lower_all_irqs();
  TRY(set_kvmclock(vm_.fd(), state, clock_policy_));
  for (const std::unique_ptr<VcpuStateTransfer>& transfer : transfers_) {
    TRY_CONTEXT(
        transfer->restore_before_irqchip(state.vcpus[transfer->vcpu().index()], root_policy_),
        "vCPU state");
  }
  TRY(restore_controllers(state));
  return restore_timers(state);
}

Result<void> Processors::restore_run_state(const ProcessorsState& state, u32 vcpu_index) {
  return transfers_[vcpu_index]->restore_run_state(state.vcpus[vcpu_index]);
}

// The slave PIC before the master: after loading either, KVM passes the slave's output on to the
// master, and the abandoned slave's must not end up in the restored master.
Result<void> Processors::restore_controllers(const ProcessorsState& state) {
  TRY(KVM_CALL(vm_.fd(), KVM_SET_IRQCHIP, state.pic_slave.data()));
  TRY(KVM_CALL(vm_.fd(), KVM_SET_IRQCHIP, state.pic_master.data()));
  TRY(KVM_CALL(vm_.fd(), KVM_SET_IRQCHIP, state.ioapic.data()));
  TRY(KVM_CALL(vm_.fd(), KVM_SET_PIT2, state.pit.data()));
  return {};
}

// The TSC before the deadlines that are counted in it. Where it cannot be set, what it shows
// differs from what the guest expects by a constant, and the deadline moves along.
Result<void> Processors::restore_timers(const ProcessorsState& state) {
  const TscPlan plan = plan_tsc(state, clock_policy_, __rdtsc(), realtime_ns());
  for (const std::unique_ptr<VcpuStateTransfer>& transfer : transfers_) {
    const VcpuState& vcpu_state = state.vcpus[transfer->vcpu().index()];
    u64 deadline = vcpu_state.tsc_deadline;
    if (tsc_can_be_set_) {
      TRY(transfer->set_tsc_offset(plan.offset(vcpu_state.tsc)));
    } else if (deadline != 0) {
      const u64 before = __rdtsc();
      const u64 shown = TRY(transfer->read_tsc());
      deadline = plan.moved_deadline(vcpu_state, shown, before);
    }
    TRY_CONTEXT(transfer->restore_after_irqchip(vcpu_state, deadline), "vCPU state");
    if (has_kvmclock(vcpu_state)) kvm::forgive_pause(transfer->vcpu());
  }
  return {};
}

void Processors::forgive_pause() {
  for (const std::unique_ptr<Vcpu>& vcpu : vcpus_) kvm::forgive_pause(*vcpu);
}

bool Processors::any_vcpu_has_run() const {
  return std::any_of(vcpus_.begin(), vcpus_.end(),
                     [](const std::unique_ptr<Vcpu>& vcpu) { return vcpu->has_run(); });
}

}  // namespace kvm
