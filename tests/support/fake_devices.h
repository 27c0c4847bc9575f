// What a device is connected to, as the tests see it: lines, kicks and events that count.
//
// Thread: all calls from any thread.

#pragma once

#include <atomic>
#include <mutex>
#include <set>
#include <string>

#include "devices/device.h"
#include "devices/irq.h"
#include "devices/serial.h"

namespace test {

class FakeIrqLine final : public devices::IrqLine {
 public:
  void set(devices::IrqLevel level) override {
    const bool high = level == devices::IrqLevel::high;
    if (high && !high_.exchange(true)) ++edges_;
    if (!high) high_ = false;
  }
  bool is_high() const { return high_; }
  unsigned edges() const { return edges_; }
  unsigned take_edges() { return edges_.exchange(0); }

 private:
  std::atomic<bool> high_{false};
  std::atomic<unsigned> edges_{0};
};

class FakeKicker final : public devices::QueueKicker {
 public:
  void kick(u32 queue_index) override {
    const std::lock_guard lock(mutex_);
    kicked_.insert(queue_index);
    ++count_;
  }
  std::set<u32> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(kicked_, {});
  }

 private:
  std::mutex mutex_;
  std::set<u32> kicked_;
  u64 count_ = 0;
};

class FakeMachine final : public devices::MachineEvents {
 public:
  void power_off_requested() override { ++power_offs; }
  void reboot_requested() override { ++reboots; }
  void out_of_space(std::string_view disk_name) override {
    ++out_of_spaces;
    const std::lock_guard lock(mutex_);
    last_disk_ = disk_name;
  }
  std::string last_disk() const {
    const std::lock_guard lock(mutex_);
    return last_disk_;
  }

  std::atomic<int> power_offs{0};
  std::atomic<int> reboots{0};
  std::atomic<int> out_of_spaces{0};

 private:
  mutable std::mutex mutex_;
  std::string last_disk_;
};

class FakeSink final : public devices::SerialSink {
 public:
  void write(u8 byte) override { text.push_back(static_cast<char>(byte)); }
  void input_room() override { ++rooms; }

  std::string text;
  int rooms = 0;
};

}  // namespace test
