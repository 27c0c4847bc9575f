// PageZapper: makes KVM with shadow paging forget what it has shadowed of single guest pages.
//
// KVM zaps its shadow of a guest's page table when the guest writes fewer than four bytes into it:
// no operating system changes an entry that way, so the page must have got another use
// (detect_write_misaligned in KVM's mmu.c). A vCPU that stands still is therefore put into a few
// instructions of ours which write one byte of each page back as it is. They, their page tables and
// the list of pages lie in the pages that Vm places above RAM, and the guest cannot write these.
//
// This costs 2 us a page and leaves all other translations in place; Vm::invalidate_translations
// drops all of them. Rejected: to change the mapping of the page in the host, dirty logging, other
// control registers; none of them reaches a shadow page table.
//
// Thread: the vCPU's.

#pragma once

#include <span>

#include "vmm/kvm/vcpu.h"
#include "vmm/kvm/vcpu_state.h"

namespace kvm {

class PageZapper final {
 public:
  static constexpr std::size_t kMaximumPages = 256;

  // Where ring 0 is emulated, and KVM walks our page tables anew for each access. Elsewhere it would
  // shadow them, and go on with what they were at the time before.
  static bool works_on(KvmKind kind) { return kind == KvmKind::pvm; }

  // `vm` outlives the zapper.
  explicit PageZapper(Vm& vm) : vm_(vm) {}

  // `state`: what the vCPU has. `gpas`: of pages in RAM, ascending, at most kMaximumPages. Leaves the vCPU's registers, pending events and
  // run state undefined: all must be set before it runs again. The pages are in the dirty log
  // afterwards, their content is as it was. A failure leaves it unknown which pages are zapped.
  // REQUIRES: no vCPU runs; this one has no access pending.
  Result<void> zap(Vcpu& vcpu, const VcpuState& state, std::span<const u64> gpas);

 private:
  u64 build_tables(std::span<const u64> gpas);

  Vm& vm_;
};

}  // namespace kvm
