#include "vmm/kvm/vcpu_state.h"

#include <algorithm>

#include "vmm/base/check.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/ioctl.h"
#include "vmm/kvm/msr.h"

namespace kvm {

namespace {

// MSRs that stay out of VcpuState::msrs.
constexpr u32 kDeniedMsrs[] = {
    kMsrTsc,          // by offset, the same for all vCPUs
    kMsrTscDeadline,  // after the TSC: a field of its own
    kMsrApicBase,     // in the special registers, before the LAPIC
    kMsrEfer,         // in the special registers
    // Writing either of these two makes KVM write guest memory at once, after the copy of T; their
    // values mean nothing afterwards.
    MSR_KVM_WALL_CLOCK,
    MSR_KVM_WALL_CLOCK_NEW,
    MSR_KVM_SYSTEM_TIME,  // the old name of MSR_KVM_SYSTEM_TIME_NEW, same register
    // What the processor can do, constant for the guest. Some read and cannot be written.
    kMsrArchCapabilities,
    kMsrPerfCapabilities,
};

constexpr u32 kFirstVmxCapability = 0x480;  // IA32_VMX_BASIC
constexpr u32 kLastVmxCapability = 0x491;   // IA32_VMX_VMFUNC

bool is_denied(u32 index) {
  return (index >= kFirstVmxCapability && index <= kLastVmxCapability) ||
         std::find(std::begin(kDeniedMsrs), std::end(kDeniedMsrs), index) != std::end(kDeniedMsrs);
}

// KVM_GET_MSR_INDEX_LIST leaves these out. SDM volume 3, "Memory Type Range Registers (MTRRs)".
void append_unlisted(std::vector<u32>& indices) {
  for (u32 i = 0; i < 16; ++i) indices.push_back(kMsrMtrrPhysBase0 + i);
  for (const u32 index : {0x250U, 0x258U, 0x259U}) indices.push_back(index);
  for (u32 index = 0x268; index <= 0x26f; ++index) indices.push_back(index);
  for (const u32 index : {kMsrPat, kMsrMtrrDefaultType, kMsrXfd, kMsrXfdError, kMsrXss}) {
    indices.push_back(index);
  }
}

constexpr u64 kXstatePkru = u64{1} << 9;

// The list of an ioctl that stops at the first MSR it cannot do: how many it did.
Result<u32> call_msrs(const base::Fd& fd, unsigned long request, kvm_msrs& list,
                      std::string_view what) {
  return static_cast<u32>(TRY(call(fd, request, &list, what)));
}

// The two structs are the same up to where kvm_sregs has the pending interrupt.
kvm_sregs without_pdptrs(const StructBytes<kvm_sregs2>& special_registers) {
  static_assert(offsetof(kvm_sregs, apic_base) == offsetof(kvm_sregs2, apic_base));
  kvm_sregs registers{};
  std::memcpy(&registers, special_registers.data(), offsetof(kvm_sregs, interrupt_bitmap));
  return registers;
}

}  // namespace

kvm_sregs special_registers_of(const VcpuState& state) {
  return without_pdptrs(state.special_registers);
}

std::vector<u32> snapshot_msrs(std::span<const u32> listed) {
  std::vector<u32> indices(listed.begin(), listed.end());
  append_unlisted(indices);
  std::erase_if(indices, is_denied);
  std::sort(indices.begin(), indices.end());
  indices.erase(std::unique(indices.begin(), indices.end()), indices.end());
  return indices;
}

VcpuStateTransfer::VcpuStateTransfer(const Kvm& kvm, Vcpu& vcpu, std::vector<u32> msrs)
    : kvm_(kvm),
      vcpu_(vcpu),
      allowed_msrs_(std::move(msrs)),
      has_pkru_((supported_xcr0(kvm.supported_cpuid()) & kXstatePkru) != 0),
      msr_buffer_(sizeof(kvm_msrs) + (allowed_msrs_.size() + 2) * sizeof(kvm_msr_entry)),
      xsave_buffer_(kvm.capabilities().xsave_bytes) {}

void VcpuStateTransfer::append_msr(u32 index, u64 value) {
  kvm_msrs& list = msr_list();
  CHECK(sizeof(kvm_msrs) + (list.nmsrs + 1) * sizeof(kvm_msr_entry) <= msr_buffer_.size());
  list.entries[list.nmsrs++] = {index, 0, value};
}

// Reads the whole list and writes it back as it is; whatever KVM stops at is dropped, and the rest
// tried again. A few ioctls in all, and no guess which MSRs a processor model brings.
Result<void> VcpuStateTransfer::find_working_msrs() {
  std::vector<u32> candidates = allowed_msrs_;
  candidates.push_back(kMsrTscDeadline);
  for (;;) {
    msr_list().nmsrs = 0;
    for (const u32 index : candidates) append_msr(index, 0);
    u32 done = TRY(call_msrs(vcpu_.fd(), KVM_GET_MSRS, msr_list(), "KVM_GET_MSRS"));
    if (done == candidates.size()) {
      done = TRY(call_msrs(vcpu_.fd(), KVM_SET_MSRS, msr_list(), "KVM_SET_MSRS"));
    }
    if (done >= candidates.size()) break;
    candidates.erase(candidates.begin() + done);
  }
  has_tsc_deadline_ = !candidates.empty() && candidates.back() == kMsrTscDeadline;
  if (has_tsc_deadline_) candidates.pop_back();
  working_msrs_ = std::move(candidates);
  return {};
}

// MP_STATE first: reading it makes KVM take a pending INIT or SIPI, which changes nearly everything
// else. EVENTS next: reading them may move the payload of a pending exception into CR2 or DR6.
// MSRs, with the timer's deadline, before the LAPIC: a timer that fires in between is then seen
// twice at worst; the other way round it would be lost.
Result<VcpuState> VcpuStateTransfer::save(u64 host_tsc) {
  const base::Fd& fd = vcpu_.fd();
  VcpuState state;
  kvm_mp_state mp_state{};
  TRY(KVM_CALL(fd, KVM_GET_MP_STATE, &mp_state));
  state.mp_state = mp_state.mp_state;
  TRY(KVM_CALL(fd, KVM_GET_VCPU_EVENTS, state.events.data()));
  const std::optional<u64> offset = tsc_offset();
  state.tsc = offset ? host_tsc + *offset : TRY(read_tsc());
  TRY(save_msrs(state));
  TRY(KVM_CALL(fd, KVM_GET_LAPIC, state.lapic.data()));
  TRY(save_special_registers(state));
  TRY(KVM_CALL(fd, KVM_GET_REGS, state.registers.data()));
  state.xsave.resize(kvm_.capabilities().xsave_bytes);
  const bool large = state.xsave.size() > sizeof(kvm_xsave);
  TRY(KVM_CALL(fd, large ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, state.xsave.data()));
  TRY(KVM_CALL(fd, KVM_GET_XCRS, state.extended_control_registers.data()));
  TRY(KVM_CALL(fd, KVM_GET_DEBUGREGS, state.debug_registers.data()));
  return state;
}

Result<void> VcpuStateTransfer::save_msrs(VcpuState& state) {
  if (working_msrs_.empty()) TRY(find_working_msrs());
  msr_list().nmsrs = 0;
  for (const u32 index : working_msrs_) append_msr(index, 0);
  if (has_tsc_deadline_) append_msr(kMsrTscDeadline, 0);
  const u32 wanted = msr_list().nmsrs;
  const u32 done = TRY(call_msrs(vcpu_.fd(), KVM_GET_MSRS, msr_list(), "KVM_GET_MSRS"));
  if (done != wanted) {
    return make_error(ErrorKind::failed, "KVM does not read MSR {:#x} any more",
                      msr_list().entries[done].index);
  }
  state.msrs.reserve(working_msrs_.size());
  for (u32 i = 0; i < working_msrs_.size(); ++i) {
    state.msrs.push_back({msr_list().entries[i].index, msr_list().entries[i].data});
  }
  if (has_tsc_deadline_) state.tsc_deadline = msr_list().entries[wanted - 1].data;
  return {};
}

// kvm_sregs2 is kvm_sregs with PDPTRs instead of the pending interrupt, which EVENTS have too.
Result<void> VcpuStateTransfer::save_special_registers(VcpuState& state) {
  if (kvm_.capabilities().sregs2) {
    TRY(KVM_CALL(vcpu_.fd(), KVM_GET_SREGS2, state.special_registers.data()));
    return {};
  }
  static_assert(offsetof(kvm_sregs, apic_base) == offsetof(kvm_sregs2, apic_base));
  kvm_sregs registers{};
  TRY(KVM_CALL(vcpu_.fd(), KVM_GET_SREGS, &registers));
  std::memcpy(state.special_registers.data(), &registers, offsetof(kvm_sregs, interrupt_bitmap));
  return {};
}

// Reading MP_STATE first takes an INIT or SIPI that the abandoned time line left pending, before it
// can hit the restored registers. A vCPU that shall wait for SIPI is put there before the rest.
// XCRS, then the XFD MSR, then XSAVE: KVM drops the components that the current XFD disarms. LAPIC
// after the special registers, which have its base and mode.
Result<void> VcpuStateTransfer::restore_before_irqchip(const VcpuState& state, RootPolicy roots) {
  const base::Fd& fd = vcpu_.fd();
  kvm_mp_state mp_state{};
  TRY(KVM_CALL(fd, KVM_GET_MP_STATE, &mp_state));
  if (state.mp_state == KVM_MP_STATE_UNINITIALIZED ||
      state.mp_state == KVM_MP_STATE_INIT_RECEIVED) {
    mp_state.mp_state = state.mp_state;
    TRY(KVM_CALL(fd, KVM_SET_MP_STATE, &mp_state));
  }
  if (roots == RootPolicy::reload) TRY(drop_roots(state));
  TRY(restore_special_registers(state.special_registers));
  TRY(KVM_CALL(fd, KVM_SET_XCRS, state.extended_control_registers.data()));
  TRY(restore_xfd(state));
  TRY(restore_xsave(state));
  TRY(KVM_CALL(fd, KVM_SET_LAPIC, state.lapic.data()));
  return {};
}

// KVM drops a vCPU's roots when a control register changes, and looks at every page table that the
// guest has changed without a flush when it loads roots again. CR0.AM, because it has no say in how
// addresses are translated and any value is legal in any mode.
Result<void> VcpuStateTransfer::drop_roots(const VcpuState& state) {
  constexpr u64 kCr0Am = u64{1} << 18;
  static_assert(offsetof(kvm_sregs, cr0) == offsetof(kvm_sregs2, cr0));
  StructBytes<kvm_sregs2> other = state.special_registers;
  u64 cr0 = 0;
  std::memcpy(&cr0, other.data() + offsetof(kvm_sregs2, cr0), sizeof cr0);
  cr0 ^= kCr0Am;
  std::memcpy(other.data() + offsetof(kvm_sregs2, cr0), &cr0, sizeof cr0);
  return restore_special_registers(other);
}

Result<void> VcpuStateTransfer::restore_special_registers(
    const StructBytes<kvm_sregs2>& special_registers) {
  if (kvm_.capabilities().sregs2) {
    TRY(KVM_CALL(vcpu_.fd(), KVM_SET_SREGS2, special_registers.data()));
    return {};
  }
  const kvm_sregs registers = without_pdptrs(special_registers);
  TRY(KVM_CALL(vcpu_.fd(), KVM_SET_SREGS, &registers));
  return {};
}

Result<void> VcpuStateTransfer::restore_xfd(const VcpuState& state) {
  const auto xfd =
      std::lower_bound(state.msrs.begin(), state.msrs.end(), kMsrXfd,
                       [](const MsrValue& msr, u32 index) { return msr.index < index; });
  if (xfd == state.msrs.end() || xfd->index != kMsrXfd) return {};
  msr_list().nmsrs = 0;
  append_msr(kMsrXfd, xfd->value);
  if (TRY(call_msrs(vcpu_.fd(), KVM_SET_MSRS, msr_list(), "KVM_SET_MSRS")) != 1) {
    return make_error(ErrorKind::corrupt, "KVM refuses {:#x} for XFD", xfd->value);
  }
  return {};
}

// A component whose bit in XSTATE_BV is clear is set to its initial value, except PKRU, which KVM
// then leaves as the abandoned time line had it. So PKRU's bit is always set; the bytes of a
// component in its initial state are zero in what KVM saves, which is PKRU's initial value.
Result<void> VcpuStateTransfer::restore_xsave(const VcpuState& state) {
  constexpr std::size_t kXstateBvOffset = 512;
  std::copy(state.xsave.begin(), state.xsave.end(), xsave_buffer_.begin());
  std::fill(xsave_buffer_.begin() + static_cast<std::ptrdiff_t>(state.xsave.size()),
            xsave_buffer_.end(), u8{0});
  if (has_pkru_) {
    u64 xstate_bv = 0;
    std::memcpy(&xstate_bv, &xsave_buffer_[kXstateBvOffset], sizeof xstate_bv);
    xstate_bv |= kXstatePkru;
    std::memcpy(&xsave_buffer_[kXstateBvOffset], &xstate_bv, sizeof xstate_bv);
  }
  TRY(KVM_CALL(vcpu_.fd(), KVM_SET_XSAVE, xsave_buffer_.data()));
  return {};
}

// MSRs after the LAPIC: KVM ignores a deadline while the LVT timer is in another mode.
Result<void> VcpuStateTransfer::restore_after_irqchip(const VcpuState& state, u64 tsc_deadline) {
  const base::Fd& fd = vcpu_.fd();
  TRY(restore_msrs(state, tsc_deadline));
  TRY(KVM_CALL(fd, KVM_SET_DEBUGREGS, state.debug_registers.data()));
  return restore_registers(state);
}

Result<void> VcpuStateTransfer::restore_run_state(const VcpuState& state) {
  TRY(restore_special_registers(state.special_registers));
  return restore_registers(state);
}

// REGS before EVENTS: setting them clears a pending exception. MP_STATE last: nothing may wake or halt
// the vCPU after it.
Result<void> VcpuStateTransfer::restore_registers(const VcpuState& state) {
  const base::Fd& fd = vcpu_.fd();
  TRY(KVM_CALL(fd, KVM_SET_REGS, state.registers.data()));
  TRY(KVM_CALL(fd, KVM_SET_VCPU_EVENTS, state.events.data()));
  kvm_mp_state mp_state{};
  mp_state.mp_state = state.mp_state;
  TRY(KVM_CALL(fd, KVM_SET_MP_STATE, &mp_state));
  return {};
}

// The deadline last, after whatever else of the timer is in the list. A deadline of 0 is written,
// too: it disarms the timer of the abandoned time line.
Result<void> VcpuStateTransfer::restore_msrs(const VcpuState& state, u64 tsc_deadline) {
  msr_list().nmsrs = 0;
  for (const MsrValue& msr : state.msrs) append_msr(msr.index, msr.value);
  if (kvm_.capabilities().tsc_deadline) append_msr(kMsrTscDeadline, tsc_deadline);
  const u32 wanted = msr_list().nmsrs;
  const u32 done = TRY(call_msrs(vcpu_.fd(), KVM_SET_MSRS, msr_list(), "KVM_SET_MSRS"));
  if (done != wanted) {
    return make_error(ErrorKind::corrupt, "KVM refuses {:#x} for MSR {:#x}",
                      msr_list().entries[done].data, msr_list().entries[done].index);
  }
  return {};
}

namespace {

kvm_device_attr tsc_offset_attribute(u64& value) {
  kvm_device_attr attribute{};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  attribute.addr = reinterpret_cast<u64>(&value);
  return attribute;
}

}  // namespace

std::optional<u64> VcpuStateTransfer::tsc_offset() const {
  u64 offset = 0;
  kvm_device_attr attribute = tsc_offset_attribute(offset);
  if (!KVM_CALL(vcpu_.fd(), KVM_GET_DEVICE_ATTR, &attribute)) return std::nullopt;
  return offset;
}

Result<void> VcpuStateTransfer::set_tsc_offset(u64 offset) {
  kvm_device_attr attribute = tsc_offset_attribute(offset);
  TRY_CONTEXT(KVM_CALL(vcpu_.fd(), KVM_SET_DEVICE_ATTR, &attribute), "TSC offset");
  return {};
}

Result<u64> VcpuStateTransfer::read_tsc() const {
  alignas(kvm_msrs) u8 bytes[sizeof(kvm_msrs) + sizeof(kvm_msr_entry)] = {};
  kvm_msrs* list = reinterpret_cast<kvm_msrs*>(bytes);
  list->nmsrs = 1;
  list->entries[0].index = kMsrTsc;
  if (TRY(call_msrs(vcpu_.fd(), KVM_GET_MSRS, *list, "KVM_GET_MSRS")) != 1) {
    return make_error(ErrorKind::failed, "KVM does not read the TSC");
  }
  return u64{list->entries[0].data};
}

}  // namespace kvm
