// find_stale_translations: finds by experiment what this host's KVM keeps of a guest page table
// that the host has rewritten.
//
// A throw-away VM reads through a page table, the host rewrites the table, the guest flushes its
// TLB and reads again. If it still sees the old page, KVM keeps shadow tables, and a revert must
// make it drop them. A name or a version would not do: the same module can run with either kind of
// paging.
//
// Takes a few milliseconds, once per process; meant for the moment before the first snapshot or
// revert, not for the start of a VM. Thread: any.

#pragma once

#include "vmm/base/result.h"
#include "vmm/kvm/kvm.h"
#include "vmm/kvm/vm.h"

namespace kvm {

Result<StaleTranslations> find_stale_translations(const Kvm& kvm);

}  // namespace kvm
