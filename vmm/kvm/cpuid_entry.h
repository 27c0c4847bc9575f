// CpuidEntry: one leaf of the CPUID instruction, as kvm_cpuid_entry2 has it, in a form that a
// snapshot can hold.

#pragma once

#include <tuple>

#include "vmm/base/codec.h"

namespace kvm {

// KVM_MAX_CPUID_ENTRIES of the kernel.
inline constexpr u32 kMaximumCpuidEntries = 256;

struct CpuidEntry {
  u32 function = 0;
  u32 index = 0;
  u32 flags = 0;  // KVM_CPUID_FLAG_SIGNIFCANT_INDEX: `index` counts
  u32 eax = 0;
  u32 ebx = 0;
  u32 ecx = 0;
  u32 edx = 0;

  static constexpr auto fields() {
    return std::tuple(
        base::field<1>("function", &CpuidEntry::function),
        base::field<2>("index", &CpuidEntry::index), base::field<3>("flags", &CpuidEntry::flags),
        base::field<4>("eax", &CpuidEntry::eax), base::field<5>("ebx", &CpuidEntry::ebx),
        base::field<6>("ecx", &CpuidEntry::ecx), base::field<7>("edx", &CpuidEntry::edx));
  }
  friend bool operator==(const CpuidEntry&, const CpuidEntry&) = default;
};

}  // namespace kvm
