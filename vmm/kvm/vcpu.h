// Vcpu: one virtual processor: running it, stopping it, its start registers.
//
// All other register state goes through VcpuStateTransfer.
//
// Stopping: request_exit() from any thread makes the current run() and every later one return
// InterruptedExit at once, until clear_exit_request(). A request is never lost: the flag is set in
// kvm_run before the signal is sent, so that it is seen at the entry to KVM_RUN if the signal came
// too early for it.
//
// Thread: run() and bind_to_this_thread() on the vCPU's thread; request_exit() anywhere; all else
// while the vCPU does not run.

#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/kvm/cpuid_entry.h"
#include "vmm/kvm/exits.h"
#include "vmm/kvm/uapi.h"
#include "vmm/kvm/vm.h"

namespace kvm {

using ExitHandler = std::function<void(const VcpuExit&)>;

class Vcpu final {
 public:
  // vCPU 0 is the boot processor and runnable; the others wait for INIT and SIPI.
  static Result<std::unique_ptr<Vcpu>> create(const Kvm& kvm, const Vm& vm, u32 index);
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  u32 index() const { return index_; }
  const base::Fd& fd() const { return fd_; }

  // REQUIRES: the vCPU never ran, or `cpuid` is what it has.
  Result<void> set_cpuid(std::span<const CpuidEntry> cpuid);

  // Makes a paravirtual feature that CPUID does not show unusable, not only invisible: some have
  // state that no ioctl reads.
  Result<void> hide_undeclared_features();

  // The thread that request_exit() signals. Once per thread, before run(); unbind before it ends.
  void bind_to_this_thread();
  void unbind_thread();

  // Runs the guest until something needs the VMM. The data of a PortExit or MmioExit must be served
  // before the next run().
  Result<VcpuExit> run();
  // run() from these registers on, with no event pending: they enter KVM with the run itself, which
  // costs a microsecond instead of an ioctl each. REQUIRES: run state RUNNABLE (KVM loads them too
  // late for a vCPU that waits for SIPI), no access pending.
  Result<VcpuExit> run_from(const kvm_regs& registers, const kvm_sregs& special);
  bool has_run() const { return has_run_; }

  void request_exit();
  void clear_exit_request();

  // Lets KVM complete the port or MMIO access of the last exit without running the guest further.
  // An access may come in pieces: `handler` serves each as run()'s caller would. Afterwards the
  // registers are consistent, and nothing of an abandoned time line can reach restored ones.
  Result<void> finish_pending_exit(const ExitHandler& handler);

  Result<kvm_regs> registers() const;
  Result<void> set_registers(const kvm_regs& registers);
  Result<kvm_sregs> special_registers() const;
  Result<void> set_special_registers(const kvm_sregs& registers);

 private:
  Vcpu(base::Fd fd, base::Mapping run, u32 index);
  kvm_run& run_area() const { return *reinterpret_cast<kvm_run*>(run_.data()); }
  void set_immediate_exit(u8 value);
  VcpuExit decode_exit();
  VcpuExit decode_internal_error();
  u64 instruction_pointer() const;

  base::Fd fd_;
  base::Mapping run_;
  u32 index_;
  std::atomic<int> thread_id_{0};  // 0: none bound
  std::atomic<bool> exit_requested_{false};
  bool has_run_ = false;
};

}  // namespace kvm
