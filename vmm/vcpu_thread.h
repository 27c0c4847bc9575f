// VcpuThread: runs one vCPU, and parks it.
//
//   parked --resume()--> running --request_park()--> ... --> parked
//
// A parked vCPU is out of KVM_RUN with no access pending: its registers are consistent and may be
// read and replaced from the control thread. A vCPU that cannot go on (a crash, an exit nobody
// understands) reports it and parks itself; resume() would run it again, so the machine asks first.
//
// Thread: the control thread, except handle() of the ExitHandler, which is called on this thread.

#pragma once

#include <atomic>
#include <memory>
#include <thread>

#include "vmm/base/mutex.h"
#include "vmm/kvm/vcpu.h"

namespace vmm {

// Serves what the guest accesses. Thread: all vCPU threads at once.
class VcpuExitHandler {
 public:
  virtual ~VcpuExitHandler() = default;
  virtual void serve_port(const kvm::PortExit& exit) = 0;
  virtual void serve_mmio(const kvm::MmioExit& exit) = 0;
  // The vCPU cannot go on: `exit` is a triple fault, an internal error or unknown. It parks.
  virtual void vcpu_stopped(u32 vcpu_index, const kvm::VcpuExit& exit) = 0;
  virtual void vcpu_failed(u32 vcpu_index, const Error& error) = 0;
};

class VcpuThread final {
 public:
  // Starts parked. Both outlive the thread.
  VcpuThread(kvm::Vcpu& vcpu, VcpuExitHandler& handler);
  // REQUIRES: parked.
  ~VcpuThread();

  void resume();
  // To park several at once: ask all, then wait for each.
  void request_park();
  void wait_parked();

 private:
  enum class Order : u8 { park, run, end };

  void loop();
  void run_until_ordered_otherwise();
  // Whether the vCPU can go on.
  bool serve(const kvm::VcpuExit& exit);

  kvm::Vcpu& vcpu_;
  VcpuExitHandler& handler_;

  // Read without the lock between two entries to the guest.
  std::atomic<Order> order_{Order::park};
  base::Mutex mutex_;
  base::Condition changed_;
  bool parked_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace vmm
