// The guest's clocks over a restore: kvmclock, the TSC and its deadline.

#include <chrono>
#include <thread>

#include "tests/vmm/kvm/support/processors_state.h"
#include "vmm/kvm/clock.h"
#include "vmm/kvm/ioctl.h"
#include "vmm/kvm/processors.h"

namespace kvm {
namespace {

using ProcessorsTest = KvmTest;

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

}  // namespace
}  // namespace kvm
