#include "vmm/kvm/compare_states.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace kvm
