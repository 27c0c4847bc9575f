#include "vmm/kvm/vm.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <system_error>
#include <thread>

#include "vmm/base/check.h"
#include "vmm/kvm/ioctl.h"

namespace kvm {

namespace {

constexpr u64 kPagesPerWord = 64;

// Clean words between dirty ones that are cheaper to hand to KVM than a further ioctl: 64 words are
// 512 bytes to copy.
constexpr u64 kMergedGapWords = 64;

}  // namespace

Result<std::unique_ptr<Vm>> Vm::create(const Kvm& kvm, memory::GuestMemory& memory,
                                       DirtyLogging at_creation) {
  base::Fd fd(TRY(KVM_CALL(kvm.fd(), KVM_CREATE_VM, 0UL)));
  std::unique_ptr<Vm> vm(new Vm(std::move(fd), memory, at_creation));
  TRY(vm->enable_manual_dirty_log());
  TRY(vm->add_slots());
  TRY(vm->create_interrupt_controllers());
  return vm;
}

Vm::Vm(base::Fd fd, memory::GuestMemory& memory, DirtyLogging dirty_logging)
    : fd_(std::move(fd)), dirty_logging_(dirty_logging), logged_(memory.page_count()) {
  u32 id = 0;
  u8* const ram = memory.quiet_ram().data();
  for (const memory::RamRegion& region : memory.regions()) {
    // One slot's bitmap is then a run of whole words of a PageSet.
    CHECK(region.ram_offset % (kPagesPerWord * base::kPageBytes) == 0);
    slots_.push_back({id++, region, ram + region.ram_offset});
  }
}

Vm::~Vm() {
  const int fd = fd_.release();
  try {
    std::thread([fd] { ::close(fd); }).detach();
  } catch (const std::system_error&) {
    ::close(fd);  // no thread to be had: wait here
  }
}

// Value 1, not 3: with INITIALLY_SET the first collection would report every page.
Result<void> Vm::enable_manual_dirty_log() {
  kvm_enable_cap capability{};
  capability.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
  capability.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
  TRY_CONTEXT(KVM_CALL(fd_, KVM_ENABLE_CAP, &capability), "manual dirty log");
  return {};
}

Result<void> Vm::set_slot(const Slot& slot) {
  kvm_userspace_memory_region region{};
  region.slot = slot.id;
  region.flags = dirty_logging_ == DirtyLogging::on ? KVM_MEM_LOG_DIRTY_PAGES : 0;
  region.guest_phys_addr = slot.region.gpa.value;
  region.memory_size = slot.region.length_bytes;
  region.userspace_addr = reinterpret_cast<u64>(slot.host);
  TRY_CONTEXT(KVM_CALL(fd_, KVM_SET_USER_MEMORY_REGION, &region),
              fmt::format("guest RAM at {:#x}", slot.region.gpa.value));
  return {};
}

Result<void> Vm::add_slots() {
  for (const Slot& slot : slots_) TRY(set_slot(slot));
  own_pages_ = TRY(base::Mapping::anonymous(kOwnPagesBytes));
  return place_own_pages(kOwnPages);
}

// Read-only, so that the guest cannot keep in it what a revert would not take away.
Result<void> Vm::place_own_pages(Gpa gpa) {
  kvm_userspace_memory_region region{};
  region.slot = static_cast<u32>(slots_.size());
  region.flags = KVM_MEM_READONLY;
  region.guest_phys_addr = gpa.value;
  region.memory_size = kOwnPagesBytes;
  region.userspace_addr = reinterpret_cast<u64>(own_pages_.data());
  TRY_CONTEXT(KVM_CALL(fd_, KVM_SET_USER_MEMORY_REGION, &region), "own pages");
  own_gpa_ = gpa;
  return {};
}

Result<void> Vm::create_interrupt_controllers() {
  // Intel without unrestricted guest runs real mode with the help of these pages; others ignore
  // them. KVM API, 4.38 "KVM_SET_TSS_ADDR", 4.95 "KVM_SET_IDENTITY_MAP_ADDR".
  TRY(KVM_CALL(fd_, KVM_SET_TSS_ADDR, kTssPages.value));
  u64 identity_map = kIdentityMapPage.value;
  TRY(KVM_CALL(fd_, KVM_SET_IDENTITY_MAP_ADDR, &identity_map));
  TRY(KVM_CALL(fd_, KVM_CREATE_IRQCHIP, 0UL));
  kvm_pit_config pit{};
  pit.flags = KVM_PIT_SPEAKER_DUMMY;  // port 0x61, which Linux reads to calibrate
  TRY(KVM_CALL(fd_, KVM_CREATE_PIT2, &pit));
  return {};
}

void Vm::set_irq(u32 gsi, LineLevel level) {
  CHECK(gsi < kGsiCount);
  const u32 bit = u32{1} << gsi;
  if (level == LineLevel::high) lines_high_.fetch_or(bit);
  kvm_irq_level line{};
  line.irq = gsi;
  line.level = level == LineLevel::high ? 1 : 0;
  // Can fail only for a VM without interrupt controllers or a pin that does not exist.
  CHECK(::ioctl(fd_.get(), KVM_IRQ_LINE, &line) == 0);
  if (level == LineLevel::low) lines_high_.fetch_and(~bit);
}

void Vm::lower_all_irqs() {
  for (u32 lines = lines_high_.load(); lines != 0; lines &= lines - 1) {
    set_irq(static_cast<u32>(std::countr_zero(lines)), LineLevel::low);
  }
}

Result<void> Vm::add_ioeventfd(Gpa address, u32 datamatch, const base::Fd& eventfd) {
  kvm_ioeventfd event{};
  event.datamatch = datamatch;
  event.addr = address.value;
  event.len = sizeof(u32);
  event.fd = eventfd.get();
  event.flags = KVM_IOEVENTFD_FLAG_DATAMATCH;
  TRY_CONTEXT(KVM_CALL(fd_, KVM_IOEVENTFD, &event),
              fmt::format("doorbell at {:#x}", address.value));
  return {};
}

Result<void> Vm::start_dirty_log() {
  if (dirty_logging_ == DirtyLogging::on) return {};
  dirty_logging_ = DirtyLogging::on;
  for (const Slot& slot : slots_) TRY(set_slot(slot));
  return {};
}

Result<void> Vm::collect_dirty(memory::PageSet& pages) {
  CHECK(dirty_logging_ == DirtyLogging::on && pages.page_count() == logged_.page_count());
  for (const Slot& slot : slots_) {
    kvm_dirty_log log{};
    log.slot = slot.id;
    log.dirty_bitmap = &logged_.words_to_fill()[slot.first_word()];
    TRY(KVM_CALL(fd_, KVM_GET_DIRTY_LOG, &log));
  }
  logged_.find_occupied();
  pages.unite(logged_);
  tlb_flushed_ = false;
  return {};
}

Result<void> Vm::rearm_dirty(const memory::PageSet& pages) {
  CHECK(dirty_logging_ == DirtyLogging::on && pages.page_count() == logged_.page_count());
  for (const Slot& slot : slots_) {
    const u64 begin = slot.first_word();
    const std::span<const u64> words = pages.words().subspan(begin, slot.word_count());
    u64 first = 0;  // of the run found so far, which ends before `end`
    u64 end = 0;
    for (u64 word = pages.next_word(begin) - begin; word < words.size();
         word = pages.next_word(begin + word + 1) - begin) {
      if (words[word] == 0) continue;
      if ((words[word] & logged_.words()[begin + word]) != 0) tlb_flushed_ = true;
      if (end != 0 && word - end > kMergedGapWords) {
        TRY(clear_dirty(slot, words, first, end));
        end = 0;
      }
      if (end == 0) first = word;
      end = word + 1;
    }
    if (end != 0) TRY(clear_dirty(slot, words, first, end));
  }
  return {};
}

// KVM API, 4.117 "KVM_CLEAR_DIRTY_LOG": first_page is a multiple of 64, num_pages too unless the
// range ends with the slot.
Result<void> Vm::clear_dirty(const Slot& slot, std::span<const u64> words, u64 first, u64 end) {
  const u64 slot_pages = slot.region.length_bytes / base::kPageBytes;
  kvm_clear_dirty_log log{};
  log.slot = slot.id;
  log.first_page = first * kPagesPerWord;
  log.num_pages = static_cast<u32>(std::min(end * kPagesPerWord, slot_pages) - log.first_page);
  log.dirty_bitmap = const_cast<u64*>(&words[first]);
  TRY(KVM_CALL(fd_, KVM_CLEAR_DIRTY_LOG, &log));
  return {};
}

// Two-dimensional paging: KVM flushes the TLBs of all vCPUs when KVM_CLEAR_DIRTY_LOG clears a bit
// that was set, which rearm_dirty has done whenever the guest wrote anything. Shadow paging, and
// the rare revert of a guest that wrote nothing: deleting or moving a slot makes KVM drop every
// translation it has (KVM_X86_QUIRK_SLOT_ZAP_ALL); moving takes one ioctl. Tried without effect on
// shadow tables: SET_SREGS with the same or other control registers, CLEAR_DIRTY_LOG, mprotect.
Result<void> Vm::invalidate_translations(StaleTranslations stale) {
  if (stale == StaleTranslations::tlb && tlb_flushed_) return {};
  const bool at_home = own_gpa_ == kOwnPages;
  return place_own_pages(Gpa{kOwnPages.value + (at_home ? base::kPageBytes : 0)});
}

}  // namespace kvm
