#include "vmm/kvm/page_zapper.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "vmm/base/check.h"
#include "vmm/kvm/flat_mode.h"
#include "vmm/kvm/ioctl.h"

namespace kvm {

namespace {

// What lies in Vm's pages above RAM.
constexpr u64 kCodeOffset = 0;
constexpr u64 kListOffset = 64;  // u64 linear addresses
constexpr u64 kRootOffset = 1 * base::kPageBytes;
constexpr u64 kPointersOffset = 2 * base::kPageBytes;
constexpr u64 kDirectoryOffset = 3 * base::kPageBytes;
static_assert(kListOffset + PageZapper::kMaximumPages * sizeof(u64) <= kRootOffset);
static_assert(kDirectoryOffset + base::kPageBytes <= kOwnPagesBytes);

// next: lodsq; or byte [rax + 1], 0; loop next; out kDonePort, al
constexpr u8 kDonePort = 0x10;
constexpr u8 kCode[] = {0x48, 0xad, 0x80, 0x48, 0x01, 0x00, 0xe2, 0xf8, 0xe6, kDonePort};

// SDM volume 3, "Hierarchical Paging Structures: an Overview". Accessed and dirty from the start: the
// tables lie where KVM cannot write.
constexpr u64 kTableEntry = 0x23;      // present, writable, accessed
constexpr u64 kLargePageEntry = 0xe3;  // present, writable, accessed, dirty, 2 MiB
constexpr u64 kLargePageBytes = 2 * base::kMiB;

constexpr u64 offset_in_large_page(u64 gpa) { return gpa % kLargePageBytes; }

}  // namespace

// One page directory, whose entry 0 maps our own pages and whose others map what holds `gpas`. Puts
// the list of linear addresses behind the code. Returns the linear address of our pages.
u64 PageZapper::build_tables(std::span<const u64> gpas) {
  const Gpa own_gpa = vm_.own_gpa();
  u8* const own = vm_.own_pages().data();
  const auto put = [own](u64 offset, u64 value) { std::memcpy(own + offset, &value, 8); };
  std::copy(std::begin(kCode), std::end(kCode), own + kCodeOffset);
  put(kRootOffset, (own_gpa.value + kPointersOffset) | kTableEntry);
  put(kPointersOffset, (own_gpa.value + kDirectoryOffset) | kTableEntry);
  const u64 own_large_page = own_gpa.value - offset_in_large_page(own_gpa.value);
  put(kDirectoryOffset, own_large_page | kLargePageEntry);
  // Pages come in order: those that share a large page follow each other.
  u64 mapped = own_large_page;
  u64 slot = 0;
  for (std::size_t i = 0; i < gpas.size(); ++i) {
    const u64 large_page = gpas[i] - offset_in_large_page(gpas[i]);
    if (large_page != mapped) {
      mapped = large_page;
      put(kDirectoryOffset + ++slot * 8, large_page | kLargePageEntry);
    }
    put(kListOffset + i * 8, slot * kLargePageBytes + offset_in_large_page(gpas[i]));
  }
  return offset_in_large_page(own_gpa.value);
}

Result<void> PageZapper::zap(Vcpu& vcpu, const VcpuState& state, std::span<const u64> gpas) {
  CHECK(gpas.size() <= kMaximumPages && std::ranges::is_sorted(gpas));
  if (gpas.empty()) return {};
  const u64 linear = build_tables(gpas);

  if (state.mp_state != KVM_MP_STATE_RUNNABLE) {
    kvm_mp_state runnable{};
    runnable.mp_state = KVM_MP_STATE_RUNNABLE;
    TRY(KVM_CALL(vcpu.fd(), KVM_SET_MP_STATE, &runnable));
  }
  kvm_regs registers{};
  registers.rip = linear + kCodeOffset;
  registers.rsi = linear + kListOffset;
  registers.rcx = gpas.size();
  registers.rflags = 2;  // no interrupts
  vcpu.clear_exit_request();
  const VcpuExit exit =
      TRY(vcpu.run_from(registers, flat_mode(special_registers_of(state), Ring::kernel,
                                             vm_.own_gpa().value + kRootOffset)));
  // The guest can read these pages; it shall not find what another timeline did.
  std::ranges::fill(vm_.own_pages(), u8{0});
  const PortExit* const done = std::get_if<PortExit>(&exit);
  const bool all_done = done != nullptr && done->port == kDonePort;
  if (!all_done) return make_error(ErrorKind::failed, "zap single pages: {}", describe(exit));
  return vcpu.finish_pending_exit([](const VcpuExit&) {});
}

}  // namespace kvm
