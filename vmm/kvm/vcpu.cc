#include "vmm/kvm/vcpu.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "vmm/base/check.h"
#include "vmm/kvm/ioctl.h"

namespace kvm {

namespace {

// A standard signal, not a real-time one: kicks that come in a burst need no queue.
constexpr int kKickSignal = SIGUSR1;

// Its only effect is that KVM_RUN returns EINTR; hence no SA_RESTART.
void install_kick_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    CHECK(::sigaction(kKickSignal, &action, nullptr) == 0);
  });
}

}  // namespace

Result<std::unique_ptr<Vcpu>> Vcpu::create(const Kvm& kvm, const Vm& vm, u32 index) {
  const std::string context = fmt::format("vCPU {}", index);
  base::Fd fd(
      TRY_CONTEXT(KVM_CALL(vm.fd(), KVM_CREATE_VCPU, static_cast<unsigned long>(index)), context));
  base::Mapping run = TRY_CONTEXT(
      base::Mapping::of_file(fd, kvm.run_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED), context);
  return std::unique_ptr<Vcpu>(new Vcpu(std::move(fd), std::move(run), index));
}

Vcpu::Vcpu(base::Fd fd, base::Mapping run, u32 index)
    : fd_(std::move(fd)), run_(std::move(run)), index_(index) {}

Result<void> Vcpu::set_cpuid(std::span<const CpuidEntry> cpuid) {
  std::vector<u8> bytes(sizeof(kvm_cpuid2) + cpuid.size() * sizeof(kvm_cpuid_entry2));
  kvm_cpuid2* list = reinterpret_cast<kvm_cpuid2*>(bytes.data());
  list->nent = static_cast<u32>(cpuid.size());
  for (std::size_t i = 0; i < cpuid.size(); ++i) {
    const CpuidEntry& e = cpuid[i];
    list->entries[i] = {e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx, {}};
  }
  TRY_CONTEXT(KVM_CALL(fd_, KVM_SET_CPUID2, list), fmt::format("vCPU {}", index_));
  return {};
}

Result<void> Vcpu::hide_undeclared_features() {
  kvm_enable_cap capability{};
  capability.cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID;
  capability.args[0] = 1;
  TRY(KVM_CALL(fd_, KVM_ENABLE_CAP, &capability));
  return {};
}

void Vcpu::bind_to_this_thread() {
  install_kick_handler();
  sigset_t kick;
  sigemptyset(&kick);
  sigaddset(&kick, kKickSignal);
  CHECK(::pthread_sigmask(SIG_UNBLOCK, &kick, nullptr) == 0);
  thread_id_.store(static_cast<int>(::syscall(SYS_gettid)));
}

void Vcpu::unbind_thread() { thread_id_.store(0); }

void Vcpu::set_immediate_exit(u8 value) {
  std::atomic_ref<u8>(run_area().immediate_exit).store(value);
}

// The flag goes up before the signal leaves. Three cases: the vCPU is in the guest, the signal
// throws it out; it is about to enter, KVM sees the flag; it is between KVM's look at the flag and
// the guest, the signal is pending by then and KVM_RUN returns EINTR.
void Vcpu::request_exit() {
  exit_requested_.store(true);
  set_immediate_exit(1);
  const int thread_id = thread_id_.load();
  if (thread_id != 0) ::syscall(SYS_tgkill, ::getpid(), thread_id, kKickSignal);
}

void Vcpu::clear_exit_request() {
  exit_requested_.store(false);
  set_immediate_exit(0);
}

Result<VcpuExit> Vcpu::run() {
  has_run_ = true;
  for (;;) {
    if (::ioctl(fd_.get(), KVM_RUN, 0) == 0) return decode_exit();
    if (errno == EINTR) return InterruptedExit{};
    // EAGAIN: a vCPU that waited for INIT or SIPI has got one, or may go on waiting.
    if (errno != EAGAIN) return errno_error("vCPU {}: KVM_RUN", index_);
    if (exit_requested_.load()) return InterruptedExit{};
  }
}

// KVM API, 5 "The kvm_run structure", kvm_valid_regs and kvm_dirty_regs.
Result<VcpuExit> Vcpu::run_from(const kvm_regs& registers, const kvm_sregs& special) {
  kvm_run& run = run_area();
  run.s.regs.regs = registers;
  run.s.regs.sregs = special;
  run.s.regs.events = {};
  run.s.regs.events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
  run.kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
  return this->run();
}

Result<void> Vcpu::finish_pending_exit(const ExitHandler& handler) {
  set_immediate_exit(1);
  Result<void> result;
  for (;;) {
    if (::ioctl(fd_.get(), KVM_RUN, 0) == 0) {
      handler(decode_exit());
      continue;
    }
    if (errno != EINTR && errno != EAGAIN) {
      result = errno_error("vCPU {}: KVM_RUN to finish an exit", index_);
    }
    break;
  }
  set_immediate_exit(0);
  if (exit_requested_.load()) set_immediate_exit(1);  // may have come while we wrote 0
  run_area().kvm_dirty_regs = 0;
  return result;
}

VcpuExit Vcpu::decode_exit() {
  kvm_run& run = run_area();
  switch (run.exit_reason) {
    case KVM_EXIT_IO: {
      u8* const data = run_.data() + run.io.data_offset;
      return PortExit{run.io.direction == KVM_EXIT_IO_IN ? Direction::in : Direction::out,
                      run.io.port, run.io.size, run.io.count,
                      std::span(data, std::size_t{run.io.count} * run.io.size)};
    }
    case KVM_EXIT_MMIO:
      return MmioExit{run.mmio.is_write != 0 ? Direction::out : Direction::in,
                      Gpa{run.mmio.phys_addr},
                      std::span(run.mmio.data, std::min<std::size_t>(run.mmio.len, 8))};
    case KVM_EXIT_HLT: return HaltExit{};
    case KVM_EXIT_SHUTDOWN: return ShutdownExit{};
    case KVM_EXIT_INTR: return InterruptedExit{};
    case KVM_EXIT_SYSTEM_EVENT: return SystemEventExit{run.system_event.type};
    case KVM_EXIT_INTERNAL_ERROR: return decode_internal_error();
    case KVM_EXIT_FAIL_ENTRY: return FailEntryExit{run.fail_entry.hardware_entry_failure_reason};
    default: return UnknownExit{run.exit_reason, instruction_pointer()};
  }
}

VcpuExit Vcpu::decode_internal_error() {
  const kvm_run& run = run_area();
  InternalErrorExit exit{};
  exit.suberror = run.internal.suberror;
  exit.rip = instruction_pointer();
  exit.data_count = std::min<u32>(run.internal.ndata, exit.data.size());
  std::copy_n(run.internal.data, exit.data_count, exit.data.begin());
  // KVM API, "KVM_EXIT_INTERNAL_ERROR": the flags word counts as data; the instruction bytes are
  // there only if it says so.
  if (exit.suberror == KVM_INTERNAL_ERROR_EMULATION && exit.data_count >= 3 &&
      (run.emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0) {
    exit.instruction_size = std::min<u8>(run.emulation_failure.insn_size, 15);
    std::copy_n(run.emulation_failure.insn_bytes, exit.instruction_size, exit.instruction.begin());
  }
  return exit;
}

// For messages only: 0 if it cannot be had.
u64 Vcpu::instruction_pointer() const {
  const Result<kvm_regs> registers = this->registers();
  return registers ? registers->rip : 0;
}

Result<kvm_regs> Vcpu::registers() const {
  kvm_regs registers{};
  TRY(KVM_CALL(fd_, KVM_GET_REGS, &registers));
  return registers;
}

Result<void> Vcpu::set_registers(const kvm_regs& registers) {
  TRY(KVM_CALL(fd_, KVM_SET_REGS, &registers));
  return {};
}

Result<kvm_sregs> Vcpu::special_registers() const {
  kvm_sregs registers{};
  TRY(KVM_CALL(fd_, KVM_GET_SREGS, &registers));
  return registers;
}

Result<void> Vcpu::set_special_registers(const kvm_sregs& registers) {
  TRY(KVM_CALL(fd_, KVM_SET_SREGS, &registers));
  return {};
}

}  // namespace kvm
