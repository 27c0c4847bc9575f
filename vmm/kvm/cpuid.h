// The processor that the guest sees: what the host's KVM supports, less what cannot be taken into a
// snapshot, with the topology of N single-thread cores in one socket.
//
// Thread: pure functions.

#pragma once

#include <span>
#include <string>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/kvm/cpuid_entry.h"
#include "vmm/kvm/kvm.h"

namespace kvm {

enum class TscDeadline : u8 { hidden, shown };

struct CpuModel {
  u32 vcpu_count = 1;
  // Hidden where the TSC cannot be set: a deadline would then name a point on a time line that a
  // restored guest no longer lives on.
  TscDeadline tsc_deadline = TscDeadline::shown;
};

// The leaves shared by all vCPUs, with the ids of vCPU 0.
std::vector<CpuidEntry> guest_cpuid(std::span<const CpuidEntry> supported, const CpuModel& model);

// The same with the APIC id of vCPU `vcpu_index` where a leaf carries it.
void set_apic_id(std::span<CpuidEntry> cpuid, u32 vcpu_index);

// Whether a guest that was shown `wanted` can go on where `supported` is what KVM offers. The Error
// names the first feature that is missing.
Result<void> check_cpuid_supported(std::span<const CpuidEntry> wanted,
                                   std::span<const CpuidEntry> supported);

// The state components that XCR0 may name: CPUID 0xd.0 EDX:EAX.
u64 supported_xcr0(std::span<const CpuidEntry> cpuid);

// The model name string of leaves 0x80000002-4, for messages; empty if absent.
std::string cpu_name(std::span<const CpuidEntry> cpuid);

}  // namespace kvm
