// What tests of the processors' state look at and change in it.

#pragma once

#include <cstring>

#include "tests/vmm/kvm/support/tiny_guest.h"

namespace kvm {

inline constexpr std::size_t kLapicId = 0x20, kLapicSpurious = 0xf0, kLapicIrr = 0x200,
                             kLapicTimer = 0x320, kLapicCurrentCount = 0x390;

template <class T, class Bytes>
void store(Bytes& bytes, const T& value, std::size_t offset = 0) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

u32 lapic_word(const VcpuState& state, std::size_t offset);
bool lapic_requests(const VcpuState& state, u32 vector);

// Software-enables the LAPIC, which is also what lets its local interrupts be unmasked.
void enable_lapic(Vcpu& vcpu);

// Without what runs on by itself: clocks, and the two timers' running counts.
ProcessorsState comparable(ProcessorsState state);
// Of both, what is comparable.
void expect_same(const ProcessorsState& a_state, const ProcessorsState& b_state);

}  // namespace kvm
