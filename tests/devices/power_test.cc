#include "devices/power.h"

#include <gtest/gtest.h>

#include "tests/support/fake_devices.h"
#include "tests/support/stateful_contract.h"

namespace devices {
namespace {

constexpr Gpa kGenerationId{0xff000};

struct Rig {
  std::unique_ptr<memory::GuestMemory> memory = *memory::GuestMemory::create(base::kMiB);
  test::FakeIrqLine irq;
  test::FakeMachine machine;
  Power power{irq, machine, *memory, kGenerationId};

  u32 events() {
    u8 data[4];
    power.event_register().read(0, data);
    le32 value;
    std::memcpy(&value, data, 4);
    return value;
  }
};

void out(BusHandler& handler, u64 offset, u8 value) { handler.write(offset, {&value, 1}); }
u8 in(BusHandler& handler, u64 offset) {
  u8 value = 0xff;
  handler.read(offset, {&value, 1});
  return value;
}

TEST(Power, ResetRegisterRebootsOnItsValueOnly) {
  Rig rig;
  out(rig.power.reset_register(), 0, 0);
  out(rig.power.reset_register(), 0, 0xff);
  EXPECT_EQ(rig.machine.reboots, 0);
  out(rig.power.reset_register(), 0, Power::kResetValue);
  EXPECT_EQ(rig.machine.reboots, 1);
}

TEST(Power, SleepControlTurnsOffForTypeFiveWithEnable) {
  Rig rig;
  out(rig.power.sleep_registers(), 0, 5 << 2);             // no SLP_EN
  out(rig.power.sleep_registers(), 0, (3 << 2) | 1 << 5);  // another type
  out(rig.power.sleep_registers(), 1, (5 << 2) | 1 << 5);  // the status register
  EXPECT_EQ(rig.machine.power_offs, 0);
  out(rig.power.sleep_registers(), 0, (5 << 2) | 1 << 5);
  EXPECT_EQ(rig.machine.power_offs, 1);
  EXPECT_EQ(in(rig.power.sleep_registers(), 1), 0);
}

TEST(Power, KeyboardControllerRebootsOnPulseResetLine) {  // G42
  Rig rig;
  EXPECT_EQ(in(rig.power.keyboard_controller(), 0) & 2, 0) << "ready for a command";
  out(rig.power.keyboard_controller(), 0, 0xd1);
  EXPECT_EQ(rig.machine.reboots, 0);
  out(rig.power.keyboard_controller(), 0, 0xfe);
  EXPECT_EQ(rig.machine.reboots, 1);
}

TEST(Power, ButtonRaisesAnEventThatReadingTakes) {
  Rig rig;
  rig.power.press_power_button();
  EXPECT_EQ(rig.irq.take_edges(), 1u);
  EXPECT_EQ(rig.events(), u32{Power::kPowerButton});
  EXPECT_EQ(rig.events(), 0u);
}

TEST(Power, EveryPressMakesAnEdgeEvenIfTheLastWasNotRead) {
  Rig rig;
  rig.power.press_power_button();
  rig.power.press_power_button();
  EXPECT_EQ(rig.irq.take_edges(), 2u);
}

TEST(Power, ANarrowReadOfTheEventsTakesNothing) {
  Rig rig;
  rig.power.press_power_button();
  EXPECT_EQ(in(rig.power.event_register(), 0), 0);
  EXPECT_EQ(rig.events(), u32{Power::kPowerButton});
}

TEST(Power, TimelineChangeWritesTheGenerationMarksItDirtyAndTellsTheGuest) {
  Rig rig;
  Generation generation;
  generation.fill(0x5a);
  rig.power.timeline_changed(TimelineChange::revert, generation);
  Generation read;
  ASSERT_TRUE(rig.memory->read(kGenerationId, read));
  EXPECT_EQ(read, generation);
  memory::PageSet dirty(rig.memory->page_count());
  rig.memory->dirty_log().collect(dirty);
  EXPECT_TRUE(dirty.contains(kGenerationId.value / base::kPageBytes));
  EXPECT_EQ(rig.irq.take_edges(), 1u);
  EXPECT_EQ(rig.events(), u32{Power::kGenerationChanged});
}

TEST(Power, RestoredUnreadEventInterruptsAgain) {
  Rig rig, other;
  rig.power.press_power_button();
  ASSERT_TRUE(other.power.restore(rig.power.save()));
  EXPECT_EQ(other.irq.take_edges(), 1u);
  EXPECT_EQ(other.events(), u32{Power::kPowerButton});
}

TEST(Power, KeepsTheStatefulContract) {
  Rig rig, fresh, built;
  rig.power.press_power_button();
  test::check_stateful_contract(rig.power, fresh.power, [&] { rig.events(); });
  rig.power.press_power_button();
  test::check_reset_equals_fresh(rig.power, built.power);
}

}  // namespace
}  // namespace devices
