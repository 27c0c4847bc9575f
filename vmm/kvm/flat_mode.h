// Start registers for a few bytes of guest code that need no kernel: 64-bit mode with flat segments
// and without an IDT, in ring 3 with IOPL 3. Ring 3, because every kind of KVM runs it natively;
// some emulate ring 0.

#pragma once

#include "vmm/base/types.h"
#include "vmm/kvm/uapi.h"

namespace kvm {

// `initial`: what the vCPU has after its creation.
kvm_sregs flat_user_mode(const kvm_sregs& initial, u64 page_table_root);

inline constexpr u64 kFlatUserRflags = 0x3002;  // IOPL 3 and the bit that is always 1

}  // namespace kvm
