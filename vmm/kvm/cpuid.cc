#include "vmm/kvm/cpuid.h"

#include <algorithm>
#include <bit>

#include "vmm/kvm/uapi.h"

namespace kvm {

namespace {

constexpr u32 bit(u32 number) { return u32{1} << number; }

// Vendor's manuals: Intel SDM volume 2, "CPUID - CPU Identification"; AMD APM volume 3, appendix E
// "Obtaining Processor Information Via the CPUID Instruction".
namespace leaf1_ecx {
constexpr u32 kMonitor = bit(3), kVmx = bit(5), kPdcm = bit(15), kX2apic = bit(21),
              kTscDeadline = bit(24), kOsxsave = bit(27), kHypervisor = bit(31);
}
namespace leaf1_edx {
constexpr u32 kHtt = bit(28);
}
namespace leaf7_ebx {
constexpr u32 kSgx = bit(2), kProcessorTrace = bit(25);
}
namespace leaf7_ecx {
constexpr u32 kOspke = bit(4), kShadowStack = bit(7), kSgxLaunch = bit(30);
}
namespace leaf7_edx {
constexpr u32 kBranchTracking = bit(20);
}
namespace leafd1 {
constexpr u32 kUserShadowStack = bit(11), kSupervisorShadowStack = bit(12);
}
namespace extended_ecx {
constexpr u32 kSvm = bit(2), kIbs = bit(10), kSkinit = bit(12), kLwp = bit(15),
              kPerformanceCounters = bit(23), kNorthBridgeCounters = bit(24), kL2Counters = bit(28);
}

// Paravirtual features that survive a revert. Not shown, and why:
//  - asynchronous page faults: a "page ready" that is outstanding at T has no getter, and lazily
//    restored memory would make many;
//  - EOI by memory (PV EOI): whether an EOI is outstanding is known to KVM alone;
//  - steal time: it grows with the run queue of a host thread, which does not revert, so it would
//    jump; and KVM would write its page at each entry, one more dirty page a revert. TLB flush by
//    memory depends on it;
//  - poll control, migration control: nothing to gain.
constexpr u32 kParavirtualFeatures =
    bit(KVM_FEATURE_CLOCKSOURCE) | bit(KVM_FEATURE_NOP_IO_DELAY) | bit(KVM_FEATURE_CLOCKSOURCE2) |
    bit(KVM_FEATURE_PV_UNHALT) | bit(KVM_FEATURE_PV_SEND_IPI) | bit(KVM_FEATURE_PV_SCHED_YIELD) |
    bit(KVM_FEATURE_CLOCKSOURCE_STABLE_BIT);

u32 apic_id_bits(u32 vcpu_count) { return static_cast<u32>(std::bit_width(vcpu_count - 1)); }

// Leaves whose features are outside what a snapshot can hold: SGX, processor trace, nested SVM,
// memory encryption, IBS, performance counters of version 2, and topology in newer forms (software
// falls back to leaf 0xb).
bool is_hidden_leaf(u32 function) {
  switch (function) {
    case 0x12:
    case 0x14:
    case 0x1f:
    case 0x8000000a:
    case 0x8000001b:
    case 0x8000001f:
    case 0x80000022:
    case 0x80000026: return true;
    default: return function > 0x4000'0001 && function < 0x8000'0000;
  }
}

void set_leaf1(CpuidEntry& e, const CpuModel& model) {
  e.ebx = (e.ebx & 0xff00'ffff) | std::bit_ceil(model.vcpu_count) << 16;
  e.ecx &= ~(leaf1_ecx::kMonitor | leaf1_ecx::kVmx | leaf1_ecx::kPdcm | leaf1_ecx::kOsxsave |
             leaf1_ecx::kTscDeadline);
  e.ecx |= leaf1_ecx::kHypervisor | leaf1_ecx::kX2apic;
  if (model.tsc_deadline == TscDeadline::shown) e.ecx |= leaf1_ecx::kTscDeadline;
  e.edx = model.vcpu_count > 1 ? e.edx | leaf1_edx::kHtt : e.edx & ~leaf1_edx::kHtt;
}

void set_leaf7(CpuidEntry& e) {
  if (e.index != 0) return;
  e.ebx &= ~(leaf7_ebx::kSgx | leaf7_ebx::kProcessorTrace);
  // Shadow stacks: their pointer is outside what the state ioctls carry.
  e.ecx &= ~(leaf7_ecx::kOspke | leaf7_ecx::kShadowStack | leaf7_ecx::kSgxLaunch);
  e.edx &= ~leaf7_edx::kBranchTracking;
}

void set_extended1(CpuidEntry& e) {
  using namespace extended_ecx;
  e.ecx &=
      ~(kSvm | kIbs | kSkinit | kLwp | kPerformanceCounters | kNorthBridgeCounters | kL2Counters);
}

// Leaf 4 (Intel) and 0x8000001d (AMD): who shares a cache. Levels 1 and 2 belong to a core.
void set_cache(CpuidEntry& e, const CpuModel& model) {
  const u32 type = e.eax & 0x1f;
  if (type == 0) return;
  const u32 level = e.eax >> 5 & 7;
  const u32 sharers = level >= 3 ? std::bit_ceil(model.vcpu_count) : 1;
  e.eax = (e.eax & 0x3fff) | (sharers - 1) << 14;
  if (e.function == 4) e.eax |= std::min(std::bit_ceil(model.vcpu_count) - 1, 63U) << 26;
}

void clear_values(CpuidEntry& e) { e.eax = e.ebx = e.ecx = e.edx = 0; }

void set_entry(CpuidEntry& e, const CpuModel& model) {
  switch (e.function) {
    case 1: return set_leaf1(e, model);
    case 4:
    case 0x8000001d: return set_cache(e, model);
    case 5:    // MONITOR/MWAIT
    case 0xa:  // performance counters: they count on while the machine goes back
      return clear_values(e);
    case 7: return set_leaf7(e);
    case 0xd:
      if (e.index == 1) e.ecx &= ~(leafd1::kUserShadowStack | leafd1::kSupervisorShadowStack);
      return;
    case 0x40000000: e.eax = 0x4000'0001; return;
    case 0x40000001:
      e.eax &= kParavirtualFeatures;
      e.edx = 0;
      return;
    case 0x80000001: return set_extended1(e);
    case 0x80000007:
      // Bit 8 of EDX, invariant TSC, would make Linux leave kvm-clock for a counter that does not
      // follow a restore.
      return clear_values(e);
    case 0x80000008: e.ecx = apic_id_bits(model.vcpu_count) << 12 | (model.vcpu_count - 1); return;
    default: return;
  }
}

// Leaf 0xb, "Extended Topology Enumeration": a thread level of one, a core level of all, the end.
void append_topology(std::vector<CpuidEntry>& cpuid, const CpuModel& model) {
  const u32 flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
  cpuid.push_back({0xb, 0, flags, 0, 1, 1 << 8 | 0, 0});
  cpuid.push_back({0xb, 1, flags, apic_id_bits(model.vcpu_count), model.vcpu_count, 2 << 8 | 1, 0});
  cpuid.push_back({0xb, 2, flags, 0, 0, 2, 0});
}

u32 maximum_basic_leaf(std::span<const CpuidEntry> cpuid) {
  for (const CpuidEntry& e : cpuid) {
    if (e.function == 0) return e.eax;
  }
  return 0;
}

}  // namespace

std::vector<CpuidEntry> guest_cpuid(std::span<const CpuidEntry> supported, const CpuModel& model) {
  std::vector<CpuidEntry> cpuid;
  for (CpuidEntry e : supported) {
    if (e.function == 0xb || is_hidden_leaf(e.function)) continue;
    set_entry(e, model);
    cpuid.push_back(e);
  }
  if (maximum_basic_leaf(supported) >= 0xb) append_topology(cpuid, model);
  set_apic_id(cpuid, 0);
  return cpuid;
}

void set_apic_id(std::span<CpuidEntry> cpuid, u32 vcpu_index) {
  for (CpuidEntry& e : cpuid) {
    switch (e.function) {
      case 1: e.ebx = (e.ebx & 0x00ff'ffff) | vcpu_index << 24; break;
      case 0xb: e.edx = vcpu_index; break;
      case 0x8000001e:  // one thread per core, one node
        e.eax = vcpu_index;
        e.ebx = vcpu_index & 0xff;
        e.ecx = 0;
        break;
      default: break;
    }
  }
}

namespace {

enum class Register : u8 { eax, ebx, ecx, edx };

u32 register_of(const CpuidEntry& e, Register which) {
  switch (which) {
    case Register::eax: return e.eax;
    case Register::ebx: return e.ebx;
    case Register::ecx: return e.ecx;
    case Register::edx: return e.edx;
  }
  return 0;
}

struct FeatureWord {
  u32 function;
  u32 index;
  Register which;
  // Bits that this program or the guest sets whatever KVM supports.
  u32 ignored;
  std::string_view name;
};

constexpr FeatureWord kFeatureWords[] = {
    {1, 0, Register::ecx,
     leaf1_ecx::kHypervisor | leaf1_ecx::kX2apic | leaf1_ecx::kOsxsave | leaf1_ecx::kTscDeadline,
     "CPUID 1 ECX"},
    {1, 0, Register::edx, leaf1_edx::kHtt, "CPUID 1 EDX"},
    {7, 0, Register::ebx, 0, "CPUID 7.0 EBX"},
    {7, 0, Register::ecx, leaf7_ecx::kOspke, "CPUID 7.0 ECX"},
    {7, 0, Register::edx, 0, "CPUID 7.0 EDX"},
    {7, 1, Register::eax, 0, "CPUID 7.1 EAX"},
    {7, 1, Register::edx, 0, "CPUID 7.1 EDX"},
    {0xd, 0, Register::eax, 0, "CPUID 0xd.0 EAX"},
    {0xd, 0, Register::edx, 0, "CPUID 0xd.0 EDX"},
    {0xd, 1, Register::eax, 0, "CPUID 0xd.1 EAX"},
    {0xd, 1, Register::ecx, 0, "CPUID 0xd.1 ECX"},
    {0x40000001, 0, Register::eax, 0, "CPUID 0x40000001 EAX"},
    {0x80000001, 0, Register::ecx, 0, "CPUID 0x80000001 ECX"},
    {0x80000001, 0, Register::edx, 0, "CPUID 0x80000001 EDX"},
    {0x80000008, 0, Register::ebx, 0, "CPUID 0x80000008 EBX"},
    {0x80000021, 0, Register::eax, 0, "CPUID 0x80000021 EAX"},
};

struct FeatureName {
  u32 function;
  Register which;
  u32 number;
  std::string_view name;
};

// As /proc/cpuinfo calls them: those that differ between the hosts one meets.
constexpr FeatureName kFeatureNames[] = {
    {1, Register::ecx, 0, "sse3"},
    {1, Register::ecx, 1, "pclmulqdq"},
    {1, Register::ecx, 9, "ssse3"},
    {1, Register::ecx, 12, "fma"},
    {1, Register::ecx, 13, "cx16"},
    {1, Register::ecx, 17, "pcid"},
    {1, Register::ecx, 19, "sse4_1"},
    {1, Register::ecx, 20, "sse4_2"},
    {1, Register::ecx, 22, "movbe"},
    {1, Register::ecx, 23, "popcnt"},
    {1, Register::ecx, 25, "aes"},
    {1, Register::ecx, 26, "xsave"},
    {1, Register::ecx, 28, "avx"},
    {1, Register::ecx, 29, "f16c"},
    {1, Register::ecx, 30, "rdrand"},
    {7, Register::ebx, 0, "fsgsbase"},
    {7, Register::ebx, 1, "tsc_adjust"},
    {7, Register::ebx, 3, "bmi1"},
    {7, Register::ebx, 4, "hle"},
    {7, Register::ebx, 5, "avx2"},
    {7, Register::ebx, 7, "smep"},
    {7, Register::ebx, 8, "bmi2"},
    {7, Register::ebx, 9, "erms"},
    {7, Register::ebx, 10, "invpcid"},
    {7, Register::ebx, 11, "rtm"},
    {7, Register::ebx, 16, "avx512f"},
    {7, Register::ebx, 17, "avx512dq"},
    {7, Register::ebx, 18, "rdseed"},
    {7, Register::ebx, 19, "adx"},
    {7, Register::ebx, 20, "smap"},
    {7, Register::ebx, 21, "avx512ifma"},
    {7, Register::ebx, 23, "clflushopt"},
    {7, Register::ebx, 24, "clwb"},
    {7, Register::ebx, 28, "avx512cd"},
    {7, Register::ebx, 29, "sha_ni"},
    {7, Register::ebx, 30, "avx512bw"},
    {7, Register::ebx, 31, "avx512vl"},
    {7, Register::ecx, 1, "avx512vbmi"},
    {7, Register::ecx, 2, "umip"},
    {7, Register::ecx, 3, "pku"},
    {7, Register::ecx, 8, "gfni"},
    {7, Register::ecx, 9, "vaes"},
    {7, Register::ecx, 10, "vpclmulqdq"},
    {7, Register::ecx, 16, "la57"},
    {7, Register::ecx, 22, "rdpid"},
    {7, Register::edx, 22, "amx_bf16"},
    {7, Register::edx, 24, "amx_tile"},
    {7, Register::edx, 26, "spec_ctrl"},
    {7, Register::edx, 29, "arch_capabilities"},
    {0x80000001, Register::ecx, 5, "abm"},
    {0x80000001, Register::ecx, 6, "sse4a"},
    {0x80000001, Register::edx, 20, "nx"},
    {0x80000001, Register::edx, 26, "pdpe1gb"},
    {0x80000001, Register::edx, 27, "rdtscp"},
    {0x80000001, Register::edx, 29, "lm"},
};

std::string feature_name(const FeatureWord& word, u32 number) {
  for (const FeatureName& feature : kFeatureNames) {
    if (feature.function == word.function && word.index == 0 && feature.which == word.which &&
        feature.number == number) {
      return std::string(feature.name);
    }
  }
  return fmt::format("{} bit {}", word.name, number);
}

// All bits that any entry of the leaf has: a list that names a leaf twice gains nothing by it.
u32 feature_bits(std::span<const CpuidEntry> cpuid, const FeatureWord& word) {
  u32 bits = 0;
  for (const CpuidEntry& e : cpuid) {
    if (e.function == word.function && e.index == word.index) bits |= register_of(e, word.which);
  }
  return bits;
}

std::string four_letters(u32 value) {
  std::string letters;
  for (u32 shift = 0; shift < 32; shift += 8) {
    const char c = static_cast<char>(value >> shift & 0xff);
    if (c != 0) letters += c >= ' ' && c <= '~' ? c : '?';
  }
  return letters;
}

std::string vendor(std::span<const CpuidEntry> cpuid) {
  for (const CpuidEntry& e : cpuid) {
    if (e.function == 0) return four_letters(e.ebx) + four_letters(e.edx) + four_letters(e.ecx);
  }
  return "unknown";
}

u32 physical_address_bits(std::span<const CpuidEntry> cpuid) {
  u32 bits = 0;
  for (const CpuidEntry& e : cpuid) {
    if (e.function == 0x8000'0008) bits = std::max(bits, e.eax & 0xff);
  }
  return bits;
}

}  // namespace

Result<void> check_cpuid_supported(std::span<const CpuidEntry> wanted,
                                   std::span<const CpuidEntry> supported) {
  if (vendor(wanted) != vendor(supported)) {
    return make_error(ErrorKind::unsupported, "taken on a processor of {}, this host has one of {}",
                      vendor(wanted), vendor(supported));
  }
  for (const FeatureWord& word : kFeatureWords) {
    const u32 missing = feature_bits(wanted, word) & ~feature_bits(supported, word) & ~word.ignored;
    if (missing == 0) continue;
    const std::string here = cpu_name(supported);  // empty on hosts that hide it
    return make_error(ErrorKind::unsupported, "taken on a CPU with {}, which this host lacks{}{}{}",
                      feature_name(word, static_cast<u32>(std::countr_zero(missing))),
                      here.empty() ? "" : " (", here, here.empty() ? "" : ")")
        .with_hint("restore it on a host like the one it was taken on");
  }
  if (physical_address_bits(wanted) > physical_address_bits(supported)) {
    return make_error(ErrorKind::unsupported,
                      "taken on a CPU with {} bits of physical address, this host has {}",
                      physical_address_bits(wanted), physical_address_bits(supported));
  }
  return {};
}

u64 supported_xcr0(std::span<const CpuidEntry> cpuid) {
  for (const CpuidEntry& e : cpuid) {
    if (e.function == 0xd && e.index == 0) return u64{e.edx} << 32 | e.eax;
  }
  return 0;
}

std::string cpu_name(std::span<const CpuidEntry> cpuid) {
  std::string name;
  for (u32 function = 0x8000'0002; function <= 0x8000'0004; ++function) {
    for (const CpuidEntry& e : cpuid) {
      if (e.function != function) continue;
      name += four_letters(e.eax) + four_letters(e.ebx) + four_letters(e.ecx) + four_letters(e.edx);
      break;
    }
  }
  const std::size_t first = name.find_first_not_of(' ');
  if (first == name.npos) return "";
  return name.substr(first, name.find_last_not_of(' ') - first + 1);
}

}  // namespace kvm
