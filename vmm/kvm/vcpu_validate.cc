// VcpuStateTransfer::validate: what a loaded VcpuState must be before any of it reaches KVM. KVM
// checks again, but only piece by piece, when the pieces before are already in place.

#include <immintrin.h>

#include <algorithm>

#include "vmm/kvm/vcpu_state.h"

namespace kvm {

namespace {

Error bad(std::string_view what) { return make_error(ErrorKind::corrupt, "{}", what); }

// SDM volume 3, "Control Registers" and "Extended Feature Enable Register"; volume 2 for XCR0.
namespace cr0 {
constexpr u64 kPe = u64{1} << 0, kNw = u64{1} << 29, kCd = u64{1} << 30, kPg = u64{1} << 31;
}
constexpr u64 kCr4Pae = u64{1} << 5;
constexpr u64 kEferLme = u64{1} << 8, kEferLma = u64{1} << 10;
constexpr u64 kApicBaseReserved = 0x2ff, kApicX2 = u64{1} << 10, kApicEnabled = u64{1} << 11;
constexpr u64 kUpperHalf = 0xffff'ffff'0000'0000;

Result<void> check_special_registers(const kvm_sregs2& s) {
  if ((s.cr0 & kUpperHalf) != 0) return bad("CR0 has reserved bits");
  if ((s.cr4 & kUpperHalf) != 0) return bad("CR4 has reserved bits");
  if ((s.cr0 & cr0::kPg) != 0 && (s.cr0 & cr0::kPe) == 0) {
    return bad("CR0 has paging without protected mode");
  }
  if ((s.cr0 & cr0::kNw) != 0 && (s.cr0 & cr0::kCd) == 0) return bad("CR0 has NW without CD");
  if (s.cr8 > 15) return bad("CR8 above 15");
  const bool long_mode = (s.efer & kEferLma) != 0;
  const bool long_mode_due = (s.efer & kEferLme) != 0 && (s.cr0 & cr0::kPg) != 0;
  if (long_mode != long_mode_due) return bad("EFER.LMA does not follow from LME and CR0.PG");
  if (long_mode && (s.cr4 & kCr4Pae) == 0) return bad("long mode without CR4.PAE");
  if ((s.apic_base & kApicBaseReserved) != 0) return bad("the APIC base has reserved bits");
  if ((s.apic_base & kApicX2) != 0 && (s.apic_base & kApicEnabled) == 0) {
    return bad("x2APIC mode with the APIC off");
  }
  if ((s.flags & ~u64{KVM_SREGS2_FLAGS_PDPTRS_VALID}) != 0) return bad("unknown SREGS2 flags");
  const bool pae = (s.cr0 & cr0::kPg) != 0 && (s.cr4 & kCr4Pae) != 0 && !long_mode;
  if (s.flags != 0 && !pae) return bad("PDPTRs outside PAE paging");
  return {};
}

// Which bits of MXCSR a processor has differs: AMD's have MM (bit 17). KVM takes those that the host
// has. SDM volume 1, "Guidelines for Writing to the MXCSR Register": MXCSR_MASK in the FXSAVE image,
// where 0 stands for the default.
u32 host_mxcsr_mask() {
  static const u32 host_mask = [] {
    constexpr std::size_t kMaskOffset = 28;
    constexpr u32 kDefaultMask = 0xffbf;
    alignas(16) u8 image[512] = {};
    ::_fxsave(image);
    u32 mask = 0;
    std::memcpy(&mask, &image[kMaskOffset], sizeof mask);
    return mask != 0 ? mask : kDefaultMask;
  }();
  return host_mask;
}

Result<void> check_xsave(const std::vector<u8>& xsave, u64 maximum_bytes, u64 xcr0) {
  if (xsave.size() < sizeof(kvm_xsave) || xsave.size() > maximum_bytes) {
    return make_error(ErrorKind::unsupported, "{} bytes of XSAVE state, this host has {}",
                      xsave.size(), maximum_bytes);
  }
  u32 mxcsr = 0;
  u64 header[8];  // SDM volume 1, "XSAVE Header": XSTATE_BV, XCOMP_BV, reserved
  std::memcpy(&mxcsr, &xsave[24], sizeof mxcsr);
  std::memcpy(header, &xsave[512], sizeof header);
  if ((mxcsr & ~host_mxcsr_mask()) != 0) return bad("MXCSR has bits that this host lacks");
  if ((header[0] & ~(xcr0 | 3)) != 0) return bad("XSAVE state of components this host lacks");
  for (std::size_t i = 1; i < 8; ++i) {
    if (header[i] != 0) return bad("the XSAVE header is not of the standard form");
  }
  return {};
}

Result<void> check_extended_control(const kvm_xcrs& xcrs, u64 xcr0) {
  if (xcrs.flags != 0 || xcrs.nr_xcrs > 1) return bad("unknown extended control registers");
  if (xcrs.nr_xcrs == 0) return {};
  const u64 value = xcrs.xcrs[0].value;
  if (xcrs.xcrs[0].xcr != 0) return bad("unknown extended control registers");
  if ((value & 1) == 0 || (value & 6) == 4) return bad("XCR0 is not valid");
  if ((value & ~(xcr0 | 3)) != 0) return bad("XCR0 has components this host lacks");
  return {};
}

Result<void> check_events(const kvm_vcpu_events& events) {
  constexpr u32 kKnown = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW |
                         KVM_VCPUEVENT_VALID_SMM | KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  if ((events.flags & ~kKnown) != 0) return bad("unknown event flags");
  if (events.exception.nr > 31 || (events.exception.injected != 0 && events.exception.nr == 2)) {
    return bad("an exception that does not exist");
  }
  return {};
}

Result<void> check_lapic(const VcpuState& state, const kvm_sregs2& special, u32 index) {
  constexpr std::size_t kIdOffset = 0x20;  // SDM volume 3, "Local APIC Register Address Map"
  u32 id = 0;
  std::memcpy(&id, &state.lapic[kIdOffset], sizeof id);
  if ((special.apic_base & kApicX2) != 0 && id != index << 24) {
    return bad("the x2APIC id is not the vCPU's");
  }
  return {};
}

}  // namespace

Result<void> VcpuStateTransfer::validate(const VcpuState& state, u64 xcr0) const {
  const kvm_sregs2 special = struct_of<kvm_sregs2>(state.special_registers);
  if (state.mp_state > KVM_MP_STATE_SIPI_RECEIVED) return bad("unknown run state");
  TRY(check_special_registers(special));
  TRY(check_xsave(state.xsave, xsave_buffer_.size(), xcr0));
  TRY(check_extended_control(struct_of<kvm_xcrs>(state.extended_control_registers), xcr0));
  TRY(check_events(struct_of<kvm_vcpu_events>(state.events)));
  TRY(check_lapic(state, special, vcpu_.index()));
  const kvm_debugregs debug = struct_of<kvm_debugregs>(state.debug_registers);
  if (debug.flags != 0 || ((debug.dr6 | debug.dr7) & kUpperHalf) != 0) {
    return bad("debug registers have reserved bits");
  }
  for (std::size_t i = 0; i < state.msrs.size(); ++i) {
    const u32 index = state.msrs[i].index;
    if (i != 0 && index <= state.msrs[i - 1].index) return bad("MSRs out of order");
    if (!std::binary_search(allowed_msrs_.begin(), allowed_msrs_.end(), index)) {
      return make_error(ErrorKind::unsupported, "MSR {:#x}, which this host does not have", index);
    }
  }
  if (state.tsc_deadline != 0 && !kvm_.capabilities().tsc_deadline) {
    return make_error(ErrorKind::unsupported, "an armed TSC deadline, which this host lacks");
  }
  return {};
}

}  // namespace kvm
