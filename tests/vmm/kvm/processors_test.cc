#include "vmm/kvm/processors.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>

#include "tests/vmm/kvm/support/tiny_guest.h"
#include "vmm/kvm/clock.h"
#include "vmm/kvm/ioctl.h"
#include "vmm/kvm/msr.h"

namespace kvm {
namespace {

using ProcessorsTest = KvmTest;

constexpr std::size_t kLapicId = 0x20, kLapicSpurious = 0xf0, kLapicIrr = 0x200,
                      kLapicTimer = 0x320, kLapicCurrentCount = 0x390;

template <class T, class Bytes>
void store(Bytes& bytes, const T& value, std::size_t offset = 0) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

u32 lapic_word(const VcpuState& state, std::size_t offset) {
  u32 value = 0;
  std::memcpy(&value, &state.lapic[offset], sizeof value);
  return value;
}

bool lapic_requests(const VcpuState& state, u32 vector) {
  return (lapic_word(state, kLapicIrr + vector / 32 * 0x10) >> vector % 32 & 1) != 0;
}

// Software-enables the LAPIC, which is also what lets its local interrupts be unmasked.
void enable_lapic(Vcpu& vcpu) {
  kvm_lapic_state lapic{};
  ASSERT_EQ(::ioctl(vcpu.fd().get(), KVM_GET_LAPIC, &lapic), 0);
  const u32 spurious = 0x1ff;
  std::memcpy(&lapic.regs[kLapicSpurious], &spurious, sizeof spurious);
  ASSERT_EQ(::ioctl(vcpu.fd().get(), KVM_SET_LAPIC, &lapic), 0);
}

kvm_irqchip ioapic_of(const ProcessorsState& state) {
  return struct_of<kvm_irqchip>(state.ioapic);
}

// What runs on by itself is not compared: clocks, and the two timers' running counts.
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

// --- clocks ------------------------------------------------------------------------------------

TEST_F(ProcessorsTest, KvmclockFollowsThePolicy) {
  TinyGuest guest;
  const ProcessorsState saved = guest.processors->save();
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  guest.processors->set_clock_policy(ClockPolicy::realtime);
  ASSERT_OK(guest.processors->restore(saved));
  const u64 realtime = guest.processors->save().kvmclock_ns - saved.kvmclock_ns;
  EXPECT_GE(realtime, 60'000'000U);
  EXPECT_LT(realtime, 3'000'000'000U);
  guest.processors->set_clock_policy(ClockPolicy::frozen);
  ASSERT_OK(guest.processors->restore(saved));
  const u64 frozen = guest.processors->save().kvmclock_ns - saved.kvmclock_ns;
  EXPECT_LT(frozen, 50'000'000U);
}

TEST_F(ProcessorsTest, TscFollowsThePolicyWhereItCanBeSet) {
  TinyGuest guest(2);
  if (!guest.processors->tsc_can_be_set()) GTEST_SKIP() << "this KVM ignores writes of the TSC";
  const ProcessorsState saved = guest.processors->save();
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  ASSERT_OK(guest.processors->restore(saved));
  const ProcessorsState realtime = guest.processors->save();
  EXPECT_EQ(realtime.vcpus[0].tsc - realtime.host_tsc, saved.vcpus[0].tsc - saved.host_tsc);
  EXPECT_EQ(realtime.vcpus[0].tsc, realtime.vcpus[1].tsc);
  guest.processors->set_clock_policy(ClockPolicy::frozen);
  ASSERT_OK(guest.processors->restore(saved));
  const ProcessorsState frozen = guest.processors->save();
  EXPECT_LT(frozen.vcpus[0].tsc - saved.vcpus[0].tsc, 50 * saved.tsc_khz);
  EXPECT_EQ(frozen.vcpus[0].tsc, frozen.vcpus[1].tsc);
}

// A guest with TSC-deadline, even where this program would not offer it: snapshots travel.
class TscDeadlineTest : public KvmTest {
 protected:
  static constexpr u32 kVector = 0x60;

  // Arms a deadline `ms` from now. False: this KVM has no such timer.
  static bool arm(TinyGuest& guest, u64 ms) {
    if (!test_kvm()->capabilities().tsc_deadline) return false;
    std::vector<CpuidEntry> cpuid(guest.processors->cpuid().begin(),
                                  guest.processors->cpuid().end());
    for (CpuidEntry& e : cpuid) {
      if (e.function == 1) e.ecx |= 1U << 24;
    }
    ProcessorsState state = guest.processors->save();
    state.cpuid = cpuid;
    EXPECT_OK(guest.processors->restore(state));
    enable_lapic(guest.vcpu());
    state = guest.processors->save();
    store(state.vcpus[0].lapic, u32{kVector | 2U << 17}, kLapicTimer);  // TSC-deadline mode
    state.vcpus[0].tsc_deadline = state.vcpus[0].tsc + ms * state.tsc_khz;
    EXPECT_OK(guest.processors->restore(state));
    // out 0x51, al; jmp back: lets KVM look at its timers
    guest.put(kTestCode, {0xe6, 0x51, 0xeb, 0xfc});
    guest.start(0, kTestCode);
    return true;
  }

  // Milliseconds until the timer's interrupt is requested; -1 after a second.
  static i64 wait_for_timer(TinyGuest& guest) {
    const auto start = std::chrono::steady_clock::now();
    for (;;) {
      const auto elapsed = std::chrono::steady_clock::now() - start;
      EXPECT_NE(guest.run_to_port(0x51), -1);
      kvm_lapic_state lapic{};
      EXPECT_EQ(::ioctl(guest.vcpu().fd().get(), KVM_GET_LAPIC, &lapic), 0);
      VcpuState state;
      std::memcpy(state.lapic.data(), &lapic, sizeof lapic);
      if (lapic_requests(state, kVector)) return elapsed / std::chrono::milliseconds(1);
      if (elapsed > std::chrono::seconds(1)) return -1;
    }
  }
};

TEST_F(TscDeadlineTest, ArmedTimerFiresAfterARestoreInPlace) {
  TinyGuest guest;
  if (!arm(guest, 40)) GTEST_SKIP() << "this KVM has no TSC-deadline timer";
  const ProcessorsState saved = guest.processors->save();
  ASSERT_NE(saved.vcpus[0].tsc_deadline, 0U);
  EXPECT_GE(wait_for_timer(guest), 0);
  guest.processors->set_clock_policy(ClockPolicy::frozen);
  ASSERT_OK(guest.processors->restore(saved));
  const i64 ms = wait_for_timer(guest);
  EXPECT_GE(ms, 25) << "fired at once: the deadline was not moved with the TSC";
}

TEST_F(TscDeadlineTest, DeadlineThatPassedMeanwhileFiresAtOnce) {
  TinyGuest guest;
  if (!arm(guest, 20)) GTEST_SKIP() << "this KVM has no TSC-deadline timer";
  const ProcessorsState saved = guest.processors->save();
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  TinyGuest other;
  other.put(kTestCode, {0xe6, 0x51, 0xeb, 0xfc});
  for (u64 gpa = kTestRoot; gpa < 0x9000; gpa += 8) other.put_u64(gpa, guest.get_u64(gpa));
  ASSERT_OK(other.processors->restore(saved));
  const i64 ms = wait_for_timer(other);
  EXPECT_GE(ms, 0) << "lost";
  EXPECT_LT(ms, 20);
}

TEST_F(TscDeadlineTest, TimerOfTheAbandonedTimeLineIsDisarmed) {
  TinyGuest guest;
  if (!arm(guest, 50)) GTEST_SKIP() << "this KVM has no TSC-deadline timer";
  ProcessorsState off = guest.processors->save();
  off.vcpus[0].tsc_deadline = 0;
  ASSERT_OK(guest.processors->restore(off));
  EXPECT_EQ(guest.processors->save().vcpus[0].tsc_deadline, 0U);
  EXPECT_EQ(wait_for_timer(guest), -1);
}

ProcessorsState state_at(u64 realtime_ns, u64 host_tsc, u64 khz) {
  ProcessorsState state;
  state.host_realtime_ns = realtime_ns;
  state.host_tsc = host_tsc;
  state.tsc_khz = khz;
  return state;
}

TEST(TscPlan, OnTheSameHostTheOffsetStays) {
  const ProcessorsState state = state_at(1'000'000'000, 5'000'000, 1'000'000);
  // Two seconds later by either clock, but for a microsecond between the readings.
  const TscPlan plan = plan_tsc(state, ClockPolicy::realtime, 2'005'000'000, 3'000'001'000);
  EXPECT_EQ(plan.offset(123), 123 - u64{5'000'000});
}

TEST(TscPlan, OnAnotherHostRealTimeDecides) {
  const ProcessorsState state = state_at(1'000'000'000, 5'000'000'000'000, 1'000'000);
  const TscPlan plan = plan_tsc(state, ClockPolicy::realtime, 777, 3'000'000'000);
  EXPECT_EQ(plan.offset(100) + 777, 100 + u64{2'000'000'000});
}

TEST(TscPlan, FrozenGoesOnFromT) {
  const ProcessorsState state = state_at(1'000'000'000, 5'000'000, 1'000'000);
  const TscPlan plan = plan_tsc(state, ClockPolicy::frozen, 2'005'000'000, 3'000'000'000);
  EXPECT_EQ(plan.offset(100) + 2'005'000'000, 100U);
}

TEST(TscPlan, RealTimeBeforeTAddsNothing) {
  const ProcessorsState state = state_at(9'000'000'000, 5'000'000'000'000, 1'000'000);
  EXPECT_EQ(plan_tsc(state, ClockPolicy::realtime, 777, 3'000'000'000).advance, 0U);
}

TEST(TscPlan, DeadlineMovesWithATscThatCannotBeSet) {
  const ProcessorsState state = state_at(1'000'000'000, 5'000'000, 1'000'000);
  VcpuState vcpu;
  vcpu.tsc = 1'000;
  vcpu.tsc_deadline = 41'000'000;
  const TscPlan plan = plan_tsc(state, ClockPolicy::frozen, 60'000'000, 0);
  EXPECT_EQ(plan.moved_deadline(vcpu, 60'001'000, 60'000'000), 41'000'000 + u64{60'000'000});
  // Close enough: not touched.
  EXPECT_EQ(plan.moved_deadline(vcpu, 1'500, 60'000'000), 41'000'000U);
}

// --- hostile state -----------------------------------------------------------------------------

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
