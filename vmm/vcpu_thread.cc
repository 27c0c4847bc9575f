#include "vmm/vcpu_thread.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <utility>

#include "vmm/base/check.h"

namespace vmm {

namespace {

// Longer than a revert takes; nobody notices a processor that is busy for so long.
constexpr std::chrono::microseconds kAwake{1000};

// Whether `done` came true in time.
template <class Done>
bool wait_awake(Done done) {
  constexpr int kLooksPerClock = 32;
  const auto end = std::chrono::steady_clock::now() + kAwake;
  do {
    for (int i = 0; i < kLooksPerClock; ++i) {
      if (done()) return true;
      __builtin_ia32_pause();
    }
    // What is waited for may have to run on this processor.
    ::sched_yield();
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

VcpuThread::VcpuThread(kvm::Vcpu& vcpu, VcpuExitHandler& handler, Waiting waiting)
    : vcpu_(vcpu), handler_(handler), waiting_(waiting), thread_([this] { loop(); }) {
  ::pthread_setname_np(thread_.native_handle(), fmt::format("vcpu{}", vcpu.index()).c_str());
  wait_parked();
}

VcpuThread::~VcpuThread() {
  give_order(Order::end);
  thread_.join();
}

void VcpuThread::resume() {
  vcpu_.clear_exit_request();
  give_order(Order::run);
}

void VcpuThread::begin(std::function<void()> work) {
  work_ = std::move(work);
  give_order(Order::work);
}

void VcpuThread::give_order(Order order) {
  {
    base::MutexLock lock(mutex_);
    CHECK(parked_);
    order_ = order;
    parked_ = false;
  }
  changed_.notify_all();
}

void VcpuThread::request_park() {
  order_ = Order::park;
  // After the order: a run() that this does not interrupt is one that has seen the order.
  vcpu_.request_exit();
}

void VcpuThread::wait_parked() { wait_until(true); }

void VcpuThread::wait_until(bool parked) {
  if (waiting_ == Waiting::awake_at_first && wait_awake([&] { return parked_.load() == parked; })) {
    return;
  }
  base::MutexLock lock(mutex_);
  while (parked_ != parked) changed_.wait(mutex_);
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
    // parked_ and not the order alone: a vCPU that parked itself waits for resume() too.
    wait_until(false);
    if (order_ == Order::end) break;
    if (order_ == Order::work) {
      std::exchange(work_, nullptr)();
    } else {
      run_until_ordered_otherwise();
    }
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
