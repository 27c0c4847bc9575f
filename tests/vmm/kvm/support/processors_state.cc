#include "tests/vmm/kvm/support/processors_state.h"

#include "vmm/kvm/ioctl.h"

namespace kvm {

u32 lapic_word(const VcpuState& state, std::size_t offset) {
  u32 value = 0;
  std::memcpy(&value, &state.lapic[offset], sizeof value);
  return value;
}

bool lapic_requests(const VcpuState& state, u32 vector) {
  return (lapic_word(state, kLapicIrr + vector / 32 * 0x10) >> vector % 32 & 1) != 0;
}

void enable_lapic(Vcpu& vcpu) {
  kvm_lapic_state lapic{};
  ASSERT_EQ(::ioctl(vcpu.fd().get(), KVM_GET_LAPIC, &lapic), 0);
  const u32 spurious = 0x1ff;
  std::memcpy(&lapic.regs[kLapicSpurious], &spurious, sizeof spurious);
  ASSERT_EQ(::ioctl(vcpu.fd().get(), KVM_SET_LAPIC, &lapic), 0);
}

ProcessorsState comparable(ProcessorsState state) {
  state.kvmclock_ns = state.host_realtime_ns = state.host_tsc = 0;
  for (VcpuState& vcpu : state.vcpus) {
    vcpu.tsc = 0;
    store(vcpu.lapic, u32{0}, kLapicCurrentCount);
  }
  kvm_pit_state2 pit = struct_of<kvm_pit_state2>(state.pit);
  for (kvm_pit_channel_state& channel : pit.channels) {
    channel.count_load_time = 0;
    channel.count_latched = channel.latched_count = 0;
  }
  store(state.pit, pit);
  return state;
}

void expect_same(const ProcessorsState& a_state, const ProcessorsState& b_state) {
  const ProcessorsState a = comparable(a_state);
  const ProcessorsState b = comparable(b_state);
  EXPECT_EQ(a.cpuid, b.cpuid);
  EXPECT_EQ(a.pic_master, b.pic_master);
  EXPECT_EQ(a.pic_slave, b.pic_slave);
  EXPECT_EQ(a.ioapic, b.ioapic);
  EXPECT_EQ(a.pit, b.pit);
  ASSERT_EQ(a.vcpus.size(), b.vcpus.size());
  for (std::size_t i = 0; i < a.vcpus.size(); ++i) {
    EXPECT_EQ(a.vcpus[i].mp_state, b.vcpus[i].mp_state) << i;
    EXPECT_EQ(a.vcpus[i].registers, b.vcpus[i].registers) << i;
    EXPECT_EQ(a.vcpus[i].special_registers, b.vcpus[i].special_registers) << i;
    EXPECT_EQ(a.vcpus[i].extended_control_registers, b.vcpus[i].extended_control_registers) << i;
    EXPECT_EQ(a.vcpus[i].xsave, b.vcpus[i].xsave) << i;
    EXPECT_EQ(a.vcpus[i].debug_registers, b.vcpus[i].debug_registers) << i;
    EXPECT_EQ(a.vcpus[i].lapic, b.vcpus[i].lapic) << i;
    EXPECT_EQ(a.vcpus[i].events, b.vcpus[i].events) << i;
    EXPECT_EQ(a.vcpus[i].msrs, b.vcpus[i].msrs) << i;
    EXPECT_EQ(a.vcpus[i].tsc_deadline, b.vcpus[i].tsc_deadline) << i;
  }
}

}  // namespace kvm
