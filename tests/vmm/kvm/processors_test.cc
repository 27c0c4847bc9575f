#include "vmm/kvm/processors.h"

#include <algorithm>
#include <chrono>

#include "tests/vmm/kvm/support/processors_state.h"
#include "vmm/kvm/ioctl.h"
#include "vmm/kvm/msr.h"

namespace kvm {
namespace {

using ProcessorsTest = KvmTest;

kvm_irqchip ioapic_of(const ProcessorsState& state) { return struct_of<kvm_irqchip>(state.ioapic); }

bool set_msr(Vcpu& vcpu, u32 index, u64 value) {
  alignas(kvm_msrs) u8 bytes[sizeof(kvm_msrs) + sizeof(kvm_msr_entry)] = {};
  kvm_msrs* list = reinterpret_cast<kvm_msrs*>(bytes);
  list->nmsrs = 1;
  list->entries[0] = {index, 0, value};
  return ::ioctl(vcpu.fd().get(), KVM_SET_MSRS, list) == 1;
}

// Something else in every group of registers.
void disturb(TinyGuest& guest) {
  for (u32 i = 0; i < guest.processors->vcpu_count(); ++i) {
    Vcpu& vcpu = guest.vcpu(i);
    const int fd = vcpu.fd().get();
    kvm_regs registers{};
    registers.rax = registers.r15 = 0xdead;
    registers.rip = 0x1234;
    registers.rflags = 2;
    ASSERT_EQ(::ioctl(fd, KVM_SET_REGS, &registers), 0);
    kvm_sregs special = *vcpu.special_registers();
    special.cr2 = 0xbad000;
    special.cr3 = 0x100000;
    special.cr8 = 7;
    special.gdt.base = 0x4444;
    special.fs.base = 0x5555;
    ASSERT_EQ(::ioctl(fd, KVM_SET_SREGS, &special), 0);
    std::vector<u8> xsave(std::max<u32>(test_kvm()->capabilities().xsave_bytes, 4096));
    ASSERT_EQ(::ioctl(fd, KVM_GET_XSAVE, xsave.data()), 0);
    store(xsave, u64{0x1111222233334444}, 160);  // XMM0
    store(xsave, u64{3}, 512);
    ASSERT_EQ(::ioctl(fd, KVM_SET_XSAVE, xsave.data()), 0);
    kvm_debugregs debug{};
    debug.db[0] = 0x1000;
    debug.dr6 = 0xffff0ff0;
    debug.dr7 = 0x401;
    ASSERT_EQ(::ioctl(fd, KVM_SET_DEBUGREGS, &debug), 0);
    kvm_lapic_state lapic{};
    ASSERT_EQ(::ioctl(fd, KVM_GET_LAPIC, &lapic), 0);
    lapic.regs[0x80] = 0x30;       // TPR
    lapic.regs[kLapicIrr] = 0x04;  // a vector below 32, never delivered
    ASSERT_EQ(::ioctl(fd, KVM_SET_LAPIC, &lapic), 0);
    EXPECT_TRUE(set_msr(vcpu, 0xc0000102, 0x777000));  // KERNEL_GS_BASE
    EXPECT_TRUE(set_msr(vcpu, 0xc0000082, 0x888000));  // LSTAR
    EXPECT_TRUE(set_msr(vcpu, kMsrPat, 0x0007010600070106));
    kvm_vcpu_events events{};
    ASSERT_EQ(::ioctl(fd, KVM_GET_VCPU_EVENTS, &events), 0);
    events.nmi.pending = 1;
    events.nmi.masked = 1;
    events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
    ASSERT_EQ(::ioctl(fd, KVM_SET_VCPU_EVENTS, &events), 0);
    kvm_mp_state halted{KVM_MP_STATE_HALTED};
    ASSERT_EQ(::ioctl(fd, KVM_SET_MP_STATE, &halted), 0);
  }
  const int vm = guest.vm->fd().get();
  for (u32 id = 0; id < 3; ++id) {
    kvm_irqchip chip{};
    chip.chip_id = id;
    ASSERT_EQ(::ioctl(vm, KVM_GET_IRQCHIP, &chip), 0);
    if (id == 2) {
      chip.chip.ioapic.redirtbl[9].bits = 0x1'0042;
    } else {
      chip.chip.pic.imr = 0x5a;
    }
    ASSERT_EQ(::ioctl(vm, KVM_SET_IRQCHIP, &chip), 0);
  }
  kvm_pit_state2 pit{};
  ASSERT_EQ(::ioctl(vm, KVM_GET_PIT2, &pit), 0);
  pit.channels[2].mode = 3;
  pit.channels[2].count = 0x4321;
  ASSERT_EQ(::ioctl(vm, KVM_SET_PIT2, &pit), 0);
  guest.vm->set_irq(10, LineLevel::high);
}

TEST_F(ProcessorsTest, EveryRegisterGroupComesBack) {
  TinyGuest guest(2);
  guest.put(kTestCode, {0xe6, 0x51, 0xeb, 0xfe});
  guest.start(0, kTestCode);
  ASSERT_NE(guest.run_to_port(0x51), -1);
  ASSERT_OK(guest.vcpu().finish_pending_exit([](const VcpuExit&) { FAIL(); }));
  enable_lapic(guest.vcpu());
  const ProcessorsState saved = guest.processors->save();
  disturb(guest);
  const ProcessorsState disturbed = comparable(guest.processors->save());
  const ProcessorsState before = comparable(saved);
  for (u32 i = 0; i < 2; ++i) {
    EXPECT_NE(disturbed.vcpus[i].registers, before.vcpus[i].registers);
    EXPECT_NE(disturbed.vcpus[i].special_registers, before.vcpus[i].special_registers);
    EXPECT_NE(disturbed.vcpus[i].xsave, before.vcpus[i].xsave);
    EXPECT_NE(disturbed.vcpus[i].debug_registers, before.vcpus[i].debug_registers);
    EXPECT_NE(disturbed.vcpus[i].lapic, before.vcpus[i].lapic);
    EXPECT_NE(disturbed.vcpus[i].events, before.vcpus[i].events);
    EXPECT_NE(disturbed.vcpus[i].msrs, before.vcpus[i].msrs);
    EXPECT_NE(disturbed.vcpus[i].mp_state, before.vcpus[i].mp_state);
  }
  EXPECT_NE(disturbed.ioapic, before.ioapic);
  EXPECT_NE(disturbed.pic_master, before.pic_master);
  EXPECT_NE(disturbed.pit, before.pit);
  ASSERT_OK(guest.processors->restore(saved));
  expect_same(saved, guest.processors->save());
}

TEST_F(ProcessorsTest, RestoreIntoAFreshMachineGoesOn) {
  TinyGuest guest;
  // inc bl; mov al, bl; out 0x51, al; jmp back
  const std::initializer_list<int> code = {0xfe, 0xc3, 0x88, 0xd8, 0xe6, 0x51, 0xeb, 0xf8};
  guest.put(kTestCode, code);
  guest.start(0, kTestCode);
  for (int i = 1; i <= 5; ++i) ASSERT_EQ(guest.run_to_port(0x51), i);
  ASSERT_OK(guest.vcpu().finish_pending_exit([](const VcpuExit&) { FAIL(); }));
  const base::Bytes bytes = base::encode_state(guest.processors->save());

  // Three generations: what a save reads must be enough for the next restore.
  Result<ProcessorsState> state = base::decode_state<ProcessorsState>(bytes);
  int expected = 6;
  for (int generation = 0; generation < 3; ++generation) {
    ASSERT_TRUE(state) << state.error().message();
    TinyGuest other;
    other.put(kTestCode, code);
    ASSERT_OK(other.processors->restore(*state));
    expect_same(*state, other.processors->save());
    ASSERT_EQ(other.run_to_port(0x51), expected++);
    ASSERT_OK(other.vcpu().finish_pending_exit([](const VcpuExit&) { FAIL(); }));
    state = base::decode_state<ProcessorsState>(base::encode_state(other.processors->save()));
  }
}

// The other order leaves remote IRR set and nothing in the LAPIC: the line would be dead for ever.
TEST_F(ProcessorsTest, LapicIsInPlaceBeforeTheIoapicDelivers) {
  TinyGuest guest;
  enable_lapic(guest.vcpu());
  ProcessorsState state = guest.processors->save();
  constexpr u32 kPin = 11, kVector = 0x55;
  kvm_irqchip ioapic = ioapic_of(state);
  ioapic.chip.ioapic.redirtbl[kPin].bits = kVector | 1U << 15;  // level, unmasked, to APIC 0
  ioapic.chip.ioapic.irr = 1U << kPin;                          // pending, not yet delivered
  store(state.ioapic, ioapic);
  ASSERT_OK(guest.processors->restore(state));
  const ProcessorsState after = guest.processors->save();
  EXPECT_TRUE(lapic_requests(after.vcpus[0], kVector));
  EXPECT_EQ(ioapic_of(after).chip.ioapic.redirtbl[kPin].fields.remote_irr, 1);
}

TEST_F(ProcessorsTest, LinesAreLowAfterRestoreAndCanBeRaisedAgain) {
  TinyGuest guest;
  enable_lapic(guest.vcpu());
  ProcessorsState state = guest.processors->save();
  constexpr u32 kPin = 11, kVector = 0x56;
  kvm_irqchip ioapic = ioapic_of(state);
  ioapic.chip.ioapic.redirtbl[kPin].bits = kVector;  // edge
  store(state.ioapic, ioapic);
  ASSERT_OK(guest.processors->restore(state));
  for (int round = 0; round < 2; ++round) {
    guest.vm->set_irq(kPin, LineLevel::high);
    EXPECT_TRUE(lapic_requests(guest.processors->save().vcpus[0], kVector)) << round;
    ASSERT_OK(guest.processors->restore(state));  // the line is still high here
    EXPECT_FALSE(lapic_requests(guest.processors->save().vcpus[0], kVector));
  }
}

// INIT and SIPI by the boot processor's LAPIC, after a revert has put the other one to sleep again.
TEST_F(ProcessorsTest, ApThatWaitsForSipiIsRestoredAndThenStarts) {
  TinyGuest guest(2);
  guest.put_u64(0x8000 + 8 * 8, 0xfee0'0000 | 7);  // the LAPIC at virtual 0x40008000
  const auto store32 = [](std::vector<int>& code, u32 address, u32 value) {
    code.insert(code.end(), {0xc7, 0x04, 0x25});  // mov dword [address], value
    for (const u32 word : {address, value}) {
      for (u32 shift = 0; shift < 32; shift += 8)
        code.push_back(static_cast<int>(word >> shift & 0xff));
    }
  };
  std::vector<int> code;
  store32(code, 0x400080f0, 0x1ff);
  store32(code, 0x40008310, 1U << 24);
  store32(code, 0x40008300, 0x4500);  // INIT
  store32(code, 0x40008300, 0x4630);  // SIPI, start at 0x30000
  code.insert(code.end(), {0xe6, 0x51});
  const std::vector<u8> bytes(code.begin(), code.end());
  ASSERT_TRUE(guest.memory->write(Gpa{kTestCode}, bytes));
  guest.put(0x30000, {0xb0, 0x77, 0xe6, 0x52, 0xf4});  // real mode: mov al, 0x77; out 0x52, al; hlt
  guest.start(0, kTestCode);
  const ProcessorsState saved = guest.processors->save();
  EXPECT_EQ(saved.vcpus[1].mp_state, u32{KVM_MP_STATE_UNINITIALIZED});
  for (int round = 0; round < 3; ++round) {
    int seen = -1;
    std::thread ap([&] {
      guest.vcpu(1).bind_to_this_thread();
      seen = guest.run_to_port(0x52, 1);
      guest.vcpu(1).unbind_thread();
    });
    EXPECT_NE(guest.run_to_port(0x51), -1);
    ap.join();
    ASSERT_EQ(seen, 0x77) << "round " << round;
    for (u32 i = 0; i < 2; ++i) {
      ASSERT_OK(guest.vcpu(i).finish_pending_exit([](const VcpuExit&) { FAIL(); }));
    }
    ASSERT_OK(guest.processors->restore(saved));
    expect_same(saved, guest.processors->save());
  }
}

// An INIT that the abandoned time line left pending must not hit the restored AP.
TEST_F(ProcessorsTest, PendingInitOfTheAbandonedTimeLineIsDropped) {
  TinyGuest guest(2);
  guest.put_u64(0x8000 + 8 * 8, 0xfee0'0000 | 7);
  // [ICR high] = 1 << 24; [ICR low] = INIT; out 0x51, al
  guest.put(kTestCode, {0xc7, 0x04, 0x25, 0x10, 0x83, 0x00, 0x40, 0,    0, 0, 1,    0xc7,
                        0x04, 0x25, 0x00, 0x83, 0x00, 0x40, 0x00, 0x45, 0, 0, 0xe6, 0x51});
  guest.put(kTestCode + 0x100, {0xb0, 0x42, 0xe6, 0x52, 0xeb, 0xfa});
  enable_lapic(guest.vcpu());  // one that is off sends nothing
  guest.start(0, kTestCode);
  guest.start(1, kTestCode + 0x100);
  const ProcessorsState saved = guest.processors->save();
  ASSERT_NE(guest.run_to_port(0x51), -1);
  ASSERT_OK(guest.vcpu().finish_pending_exit([](const VcpuExit&) { FAIL(); }));
  ASSERT_OK(guest.processors->restore(saved));
  EXPECT_EQ(guest.run_to_port(0x52, 1), 0x42);
}

// A SIPI that the abandoned time line left pending must not start an AP that waits for one at T.
TEST_F(ProcessorsTest, PendingSipiOfTheAbandonedTimeLineIsDropped) {
  TinyGuest guest(2);
  guest.put_u64(0x8000 + 8 * 8, 0xfee0'0000 | 7);
  // [ICR high] = 1 << 24; [ICR low] = SIPI to 0x30000; out 0x51, al
  guest.put(kTestCode, {0xc7, 0x04, 0x25, 0x10, 0x83, 0x00, 0x40, 0,    0, 0, 1,    0xc7,
                        0x04, 0x25, 0x00, 0x83, 0x00, 0x40, 0x30, 0x46, 0, 0, 0xe6, 0x51});
  enable_lapic(guest.vcpu());
  guest.start(0, kTestCode);
  kvm_mp_state waiting{KVM_MP_STATE_INIT_RECEIVED};
  ASSERT_EQ(::ioctl(guest.vcpu(1).fd().get(), KVM_SET_MP_STATE, &waiting), 0);
  const ProcessorsState saved = guest.processors->save();
  ASSERT_EQ(saved.vcpus[1].mp_state, u32{KVM_MP_STATE_INIT_RECEIVED});
  ASSERT_NE(guest.run_to_port(0x51), -1);
  ASSERT_OK(guest.vcpu().finish_pending_exit([](const VcpuExit&) { FAIL(); }));
  ASSERT_OK(guest.processors->restore(saved));
  expect_same(saved, guest.processors->save());
}

TEST_F(ProcessorsTest, PendingExceptionAndNmiSurvive) {
  TinyGuest guest;
  guest.put(kTestCode, {0xe6, 0x51});
  guest.start(0, kTestCode);
  kvm_vcpu_events events{};
  ASSERT_EQ(::ioctl(guest.vcpu().fd().get(), KVM_GET_VCPU_EVENTS, &events), 0);
  events.exception.injected = 1;
  events.exception.nr = 14;
  events.exception.has_error_code = 1;
  events.exception.error_code = 6;
  events.nmi.pending = 1;
  events.nmi.masked = 1;
  events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
  ASSERT_EQ(::ioctl(guest.vcpu().fd().get(), KVM_SET_VCPU_EVENTS, &events), 0);
  const ProcessorsState saved = guest.processors->save();
  const kvm_vcpu_events in_state = struct_of<kvm_vcpu_events>(saved.vcpus[0].events);
  EXPECT_EQ(in_state.exception.injected, 1);
  EXPECT_EQ(in_state.exception.nr, 14);
  EXPECT_EQ(in_state.nmi.masked, 1);
  TinyGuest other;
  ASSERT_OK(other.processors->restore(saved));
  expect_same(saved, other.processors->save());
}

TEST_F(ProcessorsTest, RestoreInPlaceIsQuick) {
  TinyGuest guest;
  guest.put(kTestCode, {0xe6, 0x51, 0xeb, 0xfc});
  guest.start(0, kTestCode);
  ASSERT_NE(guest.run_to_port(0x51), -1);
  const ProcessorsState saved = guest.processors->save();
  std::vector<i64> us;
  for (int i = 0; i < 51; ++i) {
    const auto start = std::chrono::steady_clock::now();
    ASSERT_OK(guest.processors->restore(saved));
    us.push_back((std::chrono::steady_clock::now() - start) / std::chrono::microseconds(1));
  }
  std::nth_element(us.begin(), us.begin() + 25, us.end());
  RecordProperty("median_us", static_cast<int>(us[25]));
  std::printf("restore in place, 1 vCPU: median %ld us\n", static_cast<long>(us[25]));
  EXPECT_LT(us[25], 2000);
}

}  // namespace
}  // namespace kvm
