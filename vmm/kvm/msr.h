// The model-specific registers that the code names. SDM volume 4, "Model-Specific Registers
// (MSRs)".

#pragma once

#include "vmm/base/types.h"

namespace kvm {

inline constexpr u32 kMsrTsc = 0x10;                // IA32_TIME_STAMP_COUNTER
inline constexpr u32 kMsrApicBase = 0x1b;           // IA32_APIC_BASE
inline constexpr u32 kMsrArchCapabilities = 0x10a;  // IA32_ARCH_CAPABILITIES
inline constexpr u32 kMsrXfd = 0x1c4;               // IA32_XFD
inline constexpr u32 kMsrXfdError = 0x1c5;          // IA32_XFD_ERR
inline constexpr u32 kMsrMtrrPhysBase0 = 0x200;     // IA32_MTRR_PHYSBASE0, then PHYSMASK0 and so on
inline constexpr u32 kMsrPat = 0x277;               // IA32_PAT
inline constexpr u32 kMsrMtrrDefaultType = 0x2ff;   // IA32_MTRR_DEF_TYPE
inline constexpr u32 kMsrPerfCapabilities = 0x345;  // IA32_PERF_CAPABILITIES
inline constexpr u32 kMsrTscDeadline = 0x6e0;       // IA32_TSC_DEADLINE
inline constexpr u32 kMsrXss = 0xda0;               // IA32_XSS
inline constexpr u32 kMsrEfer = 0xc000'0080;        // IA32_EFER

}  // namespace kvm
