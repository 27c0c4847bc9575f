// States of processors that nobody saved: each is refused before anything is touched.

#include <algorithm>
#include <functional>

#include "tests/vmm/kvm/support/processors_state.h"
#include "vmm/kvm/msr.h"
#include "vmm/kvm/processors.h"

namespace kvm {
namespace {

using ProcessorsTest = KvmTest;

template <class T, class Bytes>
void edit(Bytes& bytes, const std::function<void(T&)>& change) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  change(value);
  std::memcpy(bytes.data(), &value, sizeof value);
}

struct Hostile {
  std::string name;
  std::function<void(ProcessorsState&)> change;
};

std::vector<Hostile> hostile_states() {
  const auto special = [](std::function<void(kvm_sregs2&)> change) {
    return [change](ProcessorsState& s) { edit<kvm_sregs2>(s.vcpus[0].special_registers, change); };
  };
  const auto events = [](std::function<void(kvm_vcpu_events&)> change) {
    return [change](ProcessorsState& s) { edit<kvm_vcpu_events>(s.vcpus[0].events, change); };
  };
  return {
      {"no vCPU", [](ProcessorsState& s) { s.vcpus.clear(); }},
      {"a vCPU too many", [](ProcessorsState& s) { s.vcpus.push_back(s.vcpus[0]); }},
      {"no CPUID", [](ProcessorsState& s) { s.cpuid.clear(); }},
      {"CPUID beyond KVM's limit", [](ProcessorsState& s) { s.cpuid.resize(257, s.cpuid[0]); }},
      {"another CPUID", [](ProcessorsState& s) { s.cpuid.pop_back(); }},
      {"paging without protection", special([](kvm_sregs2& r) { r.cr0 &= ~u64{1}; })},
      {"CR0 upper half", special([](kvm_sregs2& r) { r.cr0 |= u64{1} << 40; })},
      {"CR4 upper half", special([](kvm_sregs2& r) { r.cr4 |= u64{1} << 40; })},
      {"NW without CD",
       special([](kvm_sregs2& r) { r.cr0 = (r.cr0 | 1U << 29) & ~(u64{1} << 30); })},
      {"LMA alone", special([](kvm_sregs2& r) { r.efer &= ~(u64{1} << 8); })},
      {"long mode without PAE", special([](kvm_sregs2& r) { r.cr4 &= ~u64{0x20}; })},
      {"CR8", special([](kvm_sregs2& r) { r.cr8 = 16; })},
      {"APIC base", special([](kvm_sregs2& r) { r.apic_base |= 1; })},
      {"x2APIC while off", special([](kvm_sregs2& r) { r.apic_base = 0xfee00400; })},
      {"PDPTRs in long mode", special([](kvm_sregs2& r) { r.flags = 1; })},
      {"SREGS2 flags", special([](kvm_sregs2& r) { r.flags = 2; })},
      {"short XSAVE", [](ProcessorsState& s) { s.vcpus[0].xsave.resize(4095); }},
      {"long XSAVE", [](ProcessorsState& s) { s.vcpus[0].xsave.resize(1 << 20); }},
      {"MXCSR", [](ProcessorsState& s) { s.vcpus[0].xsave[26] = 1; }},
      {"unknown XSAVE component", [](ProcessorsState& s) { s.vcpus[0].xsave[512 + 7] = 0x40; }},
      {"compacted XSAVE", [](ProcessorsState& s) { s.vcpus[0].xsave[520 + 7] = 0x80; }},
      {"XCR0",
       [](ProcessorsState& s) {
         edit<kvm_xcrs>(s.vcpus[0].extended_control_registers, [](kvm_xcrs& x) {
           x.nr_xcrs = 1;
           x.xcrs[0] = {0, 0, u64{1} << 62 | 1};
         });
       }},
      {"too many XCRs",
       [](ProcessorsState& s) {
         edit<kvm_xcrs>(s.vcpus[0].extended_control_registers,
                        [](kvm_xcrs& x) { x.nr_xcrs = 4000; });
       }},
      {"DR7",
       [](ProcessorsState& s) {
         edit<kvm_debugregs>(s.vcpus[0].debug_registers,
                             [](kvm_debugregs& d) { d.dr7 |= u64{1} << 32; });
       }},
      {"exception 32", events([](kvm_vcpu_events& e) { e.exception.nr = 32; })},
      {"NMI as exception",
       events([](kvm_vcpu_events& e) { e.exception.injected = 1, e.exception.nr = 2; })},
      {"event flags", events([](kvm_vcpu_events& e) { e.flags = 0x8000; })},
      {"run state", [](ProcessorsState& s) { s.vcpus[0].mp_state = 77; }},
      {"MSRs out of order",
       [](ProcessorsState& s) { std::reverse(s.vcpus[0].msrs.begin(), s.vcpus[0].msrs.end()); }},
      {"an MSR twice",
       [](ProcessorsState& s) { s.vcpus[0].msrs.push_back(s.vcpus[0].msrs.back()); }},
      {"an MSR nobody has", [](ProcessorsState& s) { s.vcpus[0].msrs.back().index = 0xfffffff0; }},
      {"the TSC as MSR", [](ProcessorsState& s) { s.vcpus[0].msrs.front().index = kMsrTsc; }},
      {"wall clock, which writes memory",
       [](ProcessorsState& s) { s.vcpus[0].msrs.front().index = MSR_KVM_WALL_CLOCK; }},
      {"chips mixed up", [](ProcessorsState& s) { std::swap(s.pic_master, s.ioapic); }},
      {"PIT mode",
       [](ProcessorsState& s) {
         edit<kvm_pit_state2>(s.pit, [](kvm_pit_state2& p) { p.channels[0].mode = 6; });
       }},
      {"kind of KVM", [](ProcessorsState& s) { s.kvm_kind = KvmKind{9}; }},
      {"TSC of 0 kHz", [](ProcessorsState& s) { s.tsc_khz = 0; }},
      {"TSC of another rate", [](ProcessorsState& s) { s.tsc_khz += s.tsc_khz / 1000; }},
  };
}

TEST_F(ProcessorsTest, HostileStateIsRefusedAndNothingIsTouched) {
  TinyGuest guest;
  guest.put(kTestCode, {0xe6, 0x51, 0xeb, 0xfc});
  guest.start(0, kTestCode);
  ASSERT_NE(guest.run_to_port(0x51), -1);
  ASSERT_OK(guest.vcpu().finish_pending_exit([](const VcpuExit&) { FAIL(); }));
  const ProcessorsState good = guest.processors->save();
  ASSERT_OK(guest.processors->validate(good));
  for (const Hostile& hostile : hostile_states()) {
    ProcessorsState bad = good;
    hostile.change(bad);
    // What makes a refusal visible if it came too late: other registers.
    for (VcpuState& vcpu : bad.vcpus) vcpu.registers[0] ^= 0xff;
    EXPECT_FALSE(guest.processors->validate(bad)) << hostile.name;
    EXPECT_FALSE(guest.processors->restore(bad)) << hostile.name;
    expect_same(good, guest.processors->save());
    if (HasFailure()) {
      ADD_FAILURE() << hostile.name;
      break;
    }
  }
  EXPECT_NE(guest.run_to_port(0x51), -1);
}

TEST_F(ProcessorsTest, TruncatedSectionIsRefused) {
  TinyGuest guest;
  const base::Bytes bytes = base::encode_state(guest.processors->save());
  for (std::size_t size = 0; size < bytes.size(); size += 97) {
    EXPECT_FALSE(base::decode_state<ProcessorsState>(std::span(bytes).first(size))) << size;
  }
}

}  // namespace
}  // namespace kvm
