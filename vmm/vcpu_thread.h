// VcpuThread: runs one vCPU, and parks it.
//
//   parked --resume()--> running --request_park()--> ... --> parked
//
// A parked vCPU is out of KVM_RUN with no access pending: its registers are consistent and may be
// read and replaced from the control thread. A vCPU that cannot go on (a crash, an exit nobody
// understands) reports it and parks itself; resume() would run it again, so the machine asks first.
//
// Between a pause and what follows it lie some hundred microseconds, and waking a thread that sleeps
// takes a good part of that: where there are processors enough, both sides wait awake for a while.
//
// Thread: the control thread, except handle() of the ExitHandler, which is called on this thread.

#pragma once

#include <atomic>
#include <functional>
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

enum class Waiting : u8 {
  asleep,
  awake_at_first,  // for machines with fewer vCPUs than the host has processors
};

class VcpuThread final {
 public:
  // Starts parked. Both outlive the thread.
  VcpuThread(kvm::Vcpu& vcpu, VcpuExitHandler& handler, Waiting waiting);
  // REQUIRES: parked.
  ~VcpuThread();

  void resume();
  // To park several at once: ask all, then wait for each.
  void request_park();
  void wait_parked();

  // Does `work` on the vCPU's thread, where KVM finds the vCPU's state on the right processor; ends
  // parked again. REQUIRES: parked.
  void begin(std::function<void()> work);

 private:
  enum class Order : u8 { park, run, work, end };

  void loop();
  // Returns when parked_ is `parked`.
  void wait_until(bool parked);
  // REQUIRES: parked.
  void give_order(Order order);
  void run_until_ordered_otherwise();
  // Whether the vCPU can go on.
  bool serve(const kvm::VcpuExit& exit);

  kvm::Vcpu& vcpu_;
  VcpuExitHandler& handler_;

  // Read without the lock between two entries to the guest.
  std::atomic<Order> order_{Order::park};
  const Waiting waiting_;
  std::function<void()> work_;  // the vCPU thread's while it is not parked
  base::Mutex mutex_;
  base::Condition changed_;
  // Changes under the lock, for those who sleep; who waits awake reads it without.
  std::atomic<bool> parked_{false};
  std::thread thread_;
};

}  // namespace vmm
