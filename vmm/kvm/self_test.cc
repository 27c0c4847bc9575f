#include "vmm/kvm/self_test.h"

#include <optional>

#include "vmm/base/mutex.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/flat_mode.h"
#include "vmm/kvm/vcpu.h"
#include "vmm/memory/guest_memory.h"

namespace kvm {

namespace {

constexpr u64 kCodeAddress = 0x1000;
constexpr u64 kRoot = 0x2000;       // PML4, PDPT, PD and PT follow each other
constexpr u64 kOtherRoot = 0x6000;  // the same PML4 again, to change CR3 there and back
constexpr u64 kProbe = 0x10000;     // the page looked at; its neighbour takes its place
constexpr u8 kPort = 0x10;
constexpr u8 kOldByte = 1;
constexpr u8 kNewByte = 2;

// mov al, [kProbe]; out kPort, al; jmp back
constexpr u8 kLook[] = {0x8a, 0x04, 0x25, 0x00, 0x00, 0x01, 0x00, 0xe6, kPort, 0xeb, 0xf5};

constexpr u64 kPresentWritableUser = 7;

// One stale look is proof of shadow tables; a fresh one is none against them: the host may have taken
// the page away for a moment (reclaim, compaction), and then KVM reads the guest's tables anew.
constexpr int kRounds = 16;

Result<void> put(memory::GuestMemory& memory, u64 gpa, u64 value) {
  if (memory.write(Gpa{gpa}, le64(value))) return {};
  return make_error(ErrorKind::failed, "self-test memory too small");
}

Result<void> build_guest(memory::GuestMemory& memory) {
  for (u64 level = 0; level < 3; ++level) {
    TRY(put(memory, kRoot + level * base::kPageBytes,
            (kRoot + (level + 1) * base::kPageBytes) | kPresentWritableUser));
  }
  TRY(put(memory, kOtherRoot, (kRoot + base::kPageBytes) | kPresentWritableUser));
  const u64 table = kRoot + 3 * base::kPageBytes;
  for (u64 page = 0; page < 32; ++page) {
    TRY(put(memory, table + page * 8, page * base::kPageBytes | kPresentWritableUser));
  }
  TRY(put(memory, kProbe, kOldByte));
  TRY(put(memory, kProbe + base::kPageBytes, kNewByte));
  if (!memory.write(Gpa{kCodeAddress}, kLook)) {
    return make_error(ErrorKind::failed, "self-test memory too small");
  }
  return {};
}

Result<u8> look(Vcpu& vcpu) {
  const VcpuExit exit = TRY(vcpu.run());
  const PortExit* port = std::get_if<PortExit>(&exit);
  if (port == nullptr || port->port != kPort || port->data.size() != 1) {
    return make_error(ErrorKind::failed, "self-test guest ended with: {}", describe(exit));
  }
  return port->data[0];
}

Result<StaleTranslations> experiment(const Kvm& kvm) {
  std::unique_ptr<memory::GuestMemory> memory = TRY(memory::GuestMemory::create(base::kMiB));
  TRY(build_guest(*memory));
  std::unique_ptr<Vm> vm = TRY(Vm::create(kvm, *memory, DirtyLogging::off));
  std::unique_ptr<Vcpu> vcpu = TRY(Vcpu::create(kvm, *vm, 0));
  TRY(vcpu->set_cpuid(guest_cpuid(kvm.supported_cpuid(), CpuModel{})));
  kvm_sregs special = flat_mode(TRY(vcpu->special_registers()), Ring::user, kRoot);
  TRY(vcpu->set_special_registers(special));
  kvm_regs registers{};
  registers.rip = kCodeAddress;
  registers.rflags = kFlatUserRflags;
  TRY(vcpu->set_registers(registers));

  if (TRY(look(*vcpu)) != kOldByte || TRY(look(*vcpu)) != kOldByte) {
    return make_error(ErrorKind::failed, "self-test guest reads the wrong page");
  }
  for (int round = 0; round < kRounds; ++round) {
    const bool away = round % 2 == 0;
    const u64 entry = kRoot + 3 * base::kPageBytes + kProbe / base::kPageBytes * 8;
    TRY(put(*memory, entry, (kProbe + (away ? base::kPageBytes : 0)) | kPresentWritableUser));
    // Another CR3 and back: KVM flushes the TLB, so that what is still stale lies in its own tables.
    special.cr3 = kOtherRoot;
    TRY(vcpu->set_special_registers(special));
    special.cr3 = kRoot;
    TRY(vcpu->set_special_registers(special));
    if (TRY(look(*vcpu)) != (away ? kNewByte : kOldByte)) return StaleTranslations::shadow_tables;
  }
  return StaleTranslations::tlb;
}

}  // namespace

Result<StaleTranslations> find_stale_translations(const Kvm& kvm) {
  static base::Mutex mutex;
  static std::optional<StaleTranslations> found;  // guarded by mutex
  base::MutexLock lock(mutex);
  if (!found) found = TRY_CONTEXT(experiment(kvm), "KVM self-test");
  return *found;
}

}  // namespace kvm
