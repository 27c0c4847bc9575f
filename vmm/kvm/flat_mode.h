// Registers for a few bytes of guest code that need no kernel: 64-bit mode with flat segments
// and without an IDT. Every kind of KVM runs ring 3 natively; some emulate ring 0.

#pragma once

#include "vmm/base/types.h"
#include "vmm/kvm/uapi.h"

namespace kvm {

enum class Ring : u8 { kernel = 0, user = 3 };

// `initial`: what the vCPU has.
kvm_sregs flat_mode(const kvm_sregs& initial, Ring ring, u64 page_table_root);

inline constexpr u64 kFlatUserRflags = 0x3002;  // IOPL 3 and the bit that is always 1

}  // namespace kvm
