// Kvm: the host's /dev/kvm and what it can do.
//
// Invariant: an open Kvm speaks API version 12 and has every capability this program cannot work
// without; capabilities() tells of the optional ones.
// Thread: immutable after open(); any thread.

#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/kvm/cpuid_entry.h"

namespace kvm {

// Which kind of KVM this is. For reports and manifests only: what the program does follows from
// capabilities and experiments, never from a name.
enum class KvmKind : u8 { unknown = 0, svm = 1, vmx = 2, pvm = 3 };

std::string_view kind_name(KvmKind kind);

struct Capabilities {
  u32 maximum_vcpus = 0;          // KVM_CAP_MAX_VCPUS
  u32 memory_slots = 0;           // KVM_CAP_NR_MEMSLOTS
  u32 xsave_bytes = 4096;         // KVM_CAP_XSAVE2
  u32 clock_flags = 0;            // KVM_CAP_ADJUST_CLOCK
  bool sregs2 = false;            // KVM_CAP_SREGS2
  bool tsc_deadline = false;      // KVM_CAP_TSC_DEADLINE_TIMER
  bool enforce_pv_cpuid = false;  // KVM_CAP_ENFORCE_PV_FEATURE_CPUID
};

class Kvm final {
 public:
  // The Error says what is missing and, in its hint, what to do about it.
  static Result<Kvm> open(const std::string& path = "/dev/kvm");

  Kvm(Kvm&&) = default;

  const base::Fd& fd() const { return fd_; }
  const Capabilities& capabilities() const { return capabilities_; }
  std::span<const CpuidEntry> supported_cpuid() const { return supported_cpuid_; }
  std::span<const u32> msr_indices() const { return msr_indices_; }  // KVM_GET_MSR_INDEX_LIST
  u64 run_bytes() const { return run_bytes_; }                       // KVM_GET_VCPU_MMAP_SIZE
  KvmKind kind() const { return kind_; }
  std::string_view kind_name() const { return kvm::kind_name(kind_); }

 private:
  Kvm() = default;

  base::Fd fd_;
  Capabilities capabilities_;
  std::vector<CpuidEntry> supported_cpuid_;
  std::vector<u32> msr_indices_;
  u64 run_bytes_ = 0;
  KvmKind kind_ = KvmKind::unknown;
};

}  // namespace kvm
