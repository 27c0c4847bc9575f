#include "vmm/kvm/compare_states.h"

#include <gtest/gtest.h>

#include <cstring>

namespace kvm {
namespace {

ProcessorsState with_xsave() {
  ProcessorsState state;
  state.vcpus.emplace_back();
  state.vcpus[0].xsave.resize(4096);
  return state;
}

// SDM volume 1, 13.6: the processor may or may not say of an initial component that it is in use.
TEST(CompareStates, ComponentWithItsInitialValueIsEqualInUseOrNot) {
  const ProcessorsState expected = with_xsave();
  ProcessorsState found = expected;
  found.vcpus[0].xsave[512] = 4;  // XSTATE_BV: AVX
  EXPECT_TRUE(compare_states(expected, found));
}

TEST(CompareStates, ValueOfAVectorRegisterCounts) {
  const ProcessorsState expected = with_xsave();
  for (const std::size_t offset : {std::size_t{160}, std::size_t{511}, std::size_t{520},
                                   std::size_t{576}, std::size_t{4095}}) {
    ProcessorsState found = expected;
    found.vcpus[0].xsave[offset] = 1;
    const Result<void> same = compare_states(expected, found);
    ASSERT_FALSE(same) << offset;
    EXPECT_NE(same.error().message().find(fmt::format("byte {} differs", offset)),
              std::string::npos)
        << same.error().message();
  }
}

constexpr u8 kVector = 0x34;

// Pin 4, where the serial port is, goes to kVector.
ProcessorsState with_serial_interrupt(u8 trigger_mode) {
  ProcessorsState state = with_xsave();
  kvm_irqchip chip{};
  chip.chip.ioapic.redirtbl[4].fields.vector = kVector;
  chip.chip.ioapic.redirtbl[4].fields.trig_mode = trigger_mode & 1;
  std::memcpy(state.ioapic.data(), &chip, sizeof chip);
  return state;
}

void request(ProcessorsState& state, u8 vector) {
  state.vcpus[0].lapic[0x200 + vector / 32 * 16 + vector % 32 / 8] |=
      static_cast<u8>(1u << vector % 8);
}

// The guest had accepted it at T and not asked the device yet, which raises its line as it is restored.
TEST(CompareStates, EdgeThatADeviceRaisesAgainIsNoDifference) {
  const ProcessorsState expected = with_serial_interrupt(0);
  ProcessorsState found = expected;
  request(found, kVector);
  EXPECT_TRUE(compare_states(expected, found));
}

TEST(CompareStates, OtherRequestsCount) {
  const ProcessorsState expected = with_serial_interrupt(0);
  ProcessorsState missing = expected;
  ProcessorsState requested = expected;
  request(requested, kVector);
  EXPECT_FALSE(compare_states(requested, missing));
  ProcessorsState of_no_line = expected;
  request(of_no_line, kVector + 1);
  EXPECT_FALSE(compare_states(expected, of_no_line));
  const ProcessorsState level = with_serial_interrupt(1);
  ProcessorsState raised = level;
  request(raised, kVector);
  EXPECT_FALSE(compare_states(level, raised));
}

}  // namespace
}  // namespace kvm
