// What a guest can make of its own processor must pass the checks of a saved state: else its snapshot
// could not be reverted to.

#include <immintrin.h>

#include <bit>
#include <cstring>

#include "tests/vmm/kvm/support/tiny_guest.h"

namespace kvm {
namespace {

using VcpuValidate = KvmTest;

u32 host_mxcsr_mask() {
  alignas(16) u8 image[512] = {};
  ::_fxsave(image);
  u32 mask = 0;
  std::memcpy(&mask, &image[28], sizeof mask);
  return mask != 0 ? mask : 0xffbf;
}

void set_mxcsr(ProcessorsState& state, u32 value) {
  std::memcpy(&state.vcpus[0].xsave[24], &value, sizeof value);
}

TEST_F(VcpuValidate, EveryBitOfMxcsrThatTheHostHasIsAcceptedFromTheGuestItself) {
  TinyGuest guest;
  const u32 mask = host_mxcsr_mask();
  guest.put_u64(0xa000, mask);
  // ldmxcsr [0xa000]; out 0x51, al; jmp $
  guest.put(kTestCode, {0x0f, 0xae, 0x14, 0x25, 0x00, 0xa0, 0x00, 0x00, 0xe6, 0x51, 0xeb, 0xfe});
  guest.start(0, kTestCode);
  kvm_sregs special = *guest.vcpu().special_registers();
  special.cr4 |= 1U << 9;  // OSFXSR
  ASSERT_OK(guest.vcpu().set_special_registers(special));
  ASSERT_NE(guest.run_to_port(0x51), -1);
  ASSERT_OK(guest.vcpu().finish_pending_exit([](const VcpuExit&) { FAIL(); }));
  const ProcessorsState saved = guest.processors->save();
  u32 mxcsr = 0;
  std::memcpy(&mxcsr, &saved.vcpus[0].xsave[24], sizeof mxcsr);
  EXPECT_EQ(mxcsr, mask);
  EXPECT_OK(guest.processors->validate(saved));
  EXPECT_OK(guest.processors->restore(saved));
}

TEST_F(VcpuValidate, EveryBitOfMxcsrThatTheHostLacksIsRefused) {
  TinyGuest guest;
  ProcessorsState state = guest.processors->save();
  for (u32 bit = 0; bit < 32; ++bit) {
    set_mxcsr(state, u32{1} << bit);
    const bool host_has_it = (host_mxcsr_mask() >> bit & 1) != 0;
    EXPECT_EQ(guest.processors->validate(state).has_value(), host_has_it) << bit;
  }
}

}  // namespace
}  // namespace kvm
