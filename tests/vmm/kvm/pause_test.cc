// A guest with kvmclock that stood still is told so before it runs on.

#include <sys/ioctl.h>

#include <cstring>

#include "tests/vmm/kvm/support/tiny_guest.h"

namespace kvm {
namespace {

using Pause = KvmTest;

// Linux, Documentation/virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW: bit 1 of `flags`.
constexpr u64 kClockPage = 0xa000, kFlagsOffset = 29;
constexpr u8 kGuestStopped = 1 << 1;

u8 flags_of(const TinyGuest& guest) {
  u8 page[32];
  for (u64 i = 0; i < sizeof page; i += 8) {
    const u64 word = guest.get_u64(kClockPage + i);
    std::memcpy(page + i, &word, sizeof word);
  }
  return page[kFlagsOffset];
}

void enable_kvmclock(Vcpu& vcpu) {
  alignas(kvm_msrs) u8 bytes[sizeof(kvm_msrs) + sizeof(kvm_msr_entry)] = {};
  kvm_msrs* list = reinterpret_cast<kvm_msrs*>(bytes);
  list->nmsrs = 1;
  list->entries[0] = {MSR_KVM_SYSTEM_TIME_NEW, 0, kClockPage | 1};
  ASSERT_EQ(::ioctl(vcpu.fd().get(), KVM_SET_MSRS, list), 1);
}

TEST_F(Pause, AGuestWithKvmclockIsToldThatItStoodStill) {
  TinyGuest guest;
  guest.put(kTestCode, {0xe6, 0x51, 0xeb, 0xfc});  // out 0x51, al; jmp -4
  guest.start(0, kTestCode);
  enable_kvmclock(guest.vcpu());
  ASSERT_NE(guest.run_to_port(0x51), -1);
  EXPECT_EQ(flags_of(guest) & kGuestStopped, 0);
  guest.processors->forgive_pause();
  ASSERT_NE(guest.run_to_port(0x51), -1);
  EXPECT_EQ(flags_of(guest) & kGuestStopped, kGuestStopped);
}

TEST_F(Pause, AGuestWithoutKvmclockRunsOn) {
  TinyGuest guest;
  guest.put(kTestCode, {0xe6, 0x51, 0xeb, 0xfc});
  guest.start(0, kTestCode);
  ASSERT_NE(guest.run_to_port(0x51), -1);
  guest.processors->forgive_pause();
  EXPECT_NE(guest.run_to_port(0x51), -1);
}

}  // namespace
}  // namespace kvm
