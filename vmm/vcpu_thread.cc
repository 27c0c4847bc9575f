#include "vmm/vcpu_thread.h"

#include <pthread.h>

#include "vmm/base/check.h"

namespace vmm {

VcpuThread::VcpuThread(kvm::Vcpu& vcpu, VcpuExitHandler& handler)
    : vcpu_(vcpu), handler_(handler), thread_([this] { loop(); }) {
  ::pthread_setname_np(thread_.native_handle(), fmt::format("vcpu{}", vcpu.index()).c_str());
  wait_parked();
}

VcpuThread::~VcpuThread() {
  {
    base::MutexLock lock(mutex_);
    CHECK(parked_);
    order_ = Order::end;
    changed_.notify_all();
  }
  thread_.join();
}

void VcpuThread::resume() {
  {
    base::MutexLock lock(mutex_);
    CHECK(parked_);
    parked_ = false;
    vcpu_.clear_exit_request();
    order_ = Order::run;
  }
  changed_.notify_all();
}

void VcpuThread::request_park() {
  {
    base::MutexLock lock(mutex_);
    order_ = Order::park;
  }
  // After the order: a run() that this does not interrupt is one that has seen the order.
  vcpu_.request_exit();
}

void VcpuThread::wait_parked() {
  base::MutexLock lock(mutex_);
  while (!parked_) changed_.wait(mutex_);
}

void VcpuThread::loop() {
  vcpu_.bind_to_this_thread();
  for (;;) {
    {
      base::MutexLock lock(mutex_);
      parked_ = true;
    }
    // Without the lock: who wakes would have to wait for it at once.
    changed_.notify_all();
    {
      base::MutexLock lock(mutex_);
      // parked_ and not the order alone: a vCPU that parked itself waits for resume() too.
      while (parked_ && order_ != Order::end) changed_.wait(mutex_);
      if (order_ == Order::end) break;
    }
    run_until_ordered_otherwise();
  }
  vcpu_.unbind_thread();
}

void VcpuThread::run_until_ordered_otherwise() {
  while (order_.load() == Order::run) {
    Result<kvm::VcpuExit> exit = vcpu_.run();
    if (!exit) {
      handler_.vcpu_failed(vcpu_.index(), exit.error());
      return;
    }
    if (!serve(*exit)) {
      handler_.vcpu_stopped(vcpu_.index(), *exit);
      return;
    }
  }
  const Result<void> finished =
      vcpu_.finish_pending_exit([this](const kvm::VcpuExit& exit) { serve(exit); });
  if (!finished) handler_.vcpu_failed(vcpu_.index(), finished.error());
}

bool VcpuThread::serve(const kvm::VcpuExit& exit) {
  if (const auto* port = std::get_if<kvm::PortExit>(&exit)) {
    handler_.serve_port(*port);
    return true;
  }
  if (const auto* mmio = std::get_if<kvm::MmioExit>(&exit)) {
    handler_.serve_mmio(*mmio);
    return true;
  }
  return std::holds_alternative<kvm::InterruptedExit>(exit);
}

}  // namespace vmm
