// Vm: one virtual machine's KVM object: memory slots, interrupt controllers, dirty log.
//
// RAM is one KVM memory slot per RamRegion. Above these sits a slot of a few pages of our own, which
// the guest has no use for: moving it makes KVM throw its shadow page tables away, and a PageZapper
// keeps its instructions there.
//
// The dirty log is KVM's bitmap with manual protection: collect_dirty() reads it and leaves it as
// it is, rearm_dirty() clears the bits it is given and write-protects those pages again. Pages that
// the VMM itself writes are not in it; memory::DirtyLog has them.
//
// Revert, all vCPUs parked: collect_dirty; copy pages back; invalidate_translations or a PageZapper;
// rearm_dirty. Where only TLBs go stale, rearm_dirty first: it flushes them.
//
// Thread: set_irq from any thread; the rest from one thread at a time. The dirty-log calls and
// invalidate_translations allocate nothing.

#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "vmm/base/fd.h"
#include "vmm/base/ranges.h"
#include "vmm/base/result.h"
#include "vmm/kvm/kvm.h"
#include "vmm/memory/gpa.h"
#include "vmm/memory/guest_memory.h"
#include "vmm/memory/page_set.h"

namespace kvm {

enum class DirtyLogging : u8 { off, on };
enum class LineLevel : u8 { low, high };

// What KVM keeps of guest page tables and does not notice when the host rewrites them.
enum class StaleTranslations : u8 {
  tlb,            // two-dimensional paging: only the TLB
  shadow_tables,  // shadow paging: KVM's shadow of the guest's tables as well
};

// Addresses below 4 GiB that KVM itself takes; no device and no RAM may lie there.
inline constexpr Gpa kOwnPages{0xfffb'0000};  // or one page further up
inline constexpr u64 kOwnPagesBytes = 4 * base::kPageBytes;
inline constexpr Gpa kIdentityMapPage{0xfffb'c000};
inline constexpr Gpa kTssPages{0xfffb'd000};  // three pages

inline constexpr u32 kGsiCount = 24;  // pins of the in-kernel IOAPIC

class Vm final {
 public:
  // Slots first (the same ioctls cost many times more once the interrupt controllers exist), then
  // PIC, IOAPIC and PIT. `memory` must outlive the Vm.
  static Result<std::unique_ptr<Vm>> create(const Kvm& kvm, memory::GuestMemory& memory,
                                            DirtyLogging at_creation);
  // Closes on a thread of its own: KVM waits 15-23 ms for grace periods.
  ~Vm();
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  const base::Fd& fd() const { return fd_; }

  // Sets a pin of the interrupt controllers. Synchronous: on return the interrupt is in the LAPIC
  // or in the IOAPIC, so that a snapshot has it. REQUIRES: gsi < kGsiCount.
  void set_irq(u32 gsi, LineLevel level);
  // All pins low, before the controllers' state is replaced.
  void lower_all_irqs();

  // A 4-byte write of `datamatch` at `address` signals `eventfd` without leaving the kernel.
  Result<void> add_ioeventfd(Gpa address, u32 datamatch, const base::Fd& eventfd);

  DirtyLogging dirty_logging() const { return dirty_logging_; }
  Result<void> start_dirty_log();
  // Adds every page that the guest (or KVM for it) wrote since it was last armed.
  // REQUIRES: logging is on; `pages` has the page count of RAM.
  Result<void> collect_dirty(memory::PageSet& pages);
  // Arms `pages` again: their next write is logged. Pages outside the set keep their bits, so a
  // page dirtied after the collection is not lost. Pages in it that were not dirty do no harm.
  Result<void> rearm_dirty(const memory::PageSet& pages);

  // What KVM has to forget after the host rewrote RAM. `stale` comes from find_stale_translations.
  Result<void> invalidate_translations(StaleTranslations stale);

  // Pages above RAM that the guest can read and not write, and where they are now.
  std::span<u8> own_pages() { return {own_pages_.data(), own_pages_.size_bytes()}; }
  Gpa own_gpa() const { return own_gpa_; }

 private:
  struct Slot {
    u32 id;
    memory::RamRegion region;
    u8* host;

    u64 first_word() const { return region.ram_offset / base::kPageBytes / 64; }
    u64 word_count() const { return base::divide_up(region.length_bytes / base::kPageBytes, 64); }
  };

  Vm(base::Fd fd, memory::GuestMemory& memory, DirtyLogging dirty_logging);
  Result<void> enable_manual_dirty_log();
  Result<void> set_slot(const Slot& slot);
  Result<void> add_slots();
  Result<void> place_own_pages(Gpa gpa);
  Result<void> create_interrupt_controllers();
  // Clears the bits of words [first, end) of a slot's part of a page set.
  Result<void> clear_dirty(const Slot& slot, std::span<const u64> words, u64 first, u64 end);

  base::Fd fd_;
  DirtyLogging dirty_logging_;
  std::vector<Slot> slots_;
  memory::PageSet logged_;  // KVM's log as collect_dirty last found it
  base::Mapping own_pages_;
  Gpa own_gpa_ = kOwnPages;
  std::atomic<u32> lines_high_{0};  // pins that set_irq left high
  // Whether rearm_dirty cleared a set bit since the last collection: KVM flushed all TLBs then.
  bool tlb_flushed_ = false;
};

}  // namespace kvm
