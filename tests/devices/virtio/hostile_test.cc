// Drivers that do anything at any time.

#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "tests/fuzz/virtio_fuzz.h"
#include "tests/support/stateful_contract.h"
#include "tests/support/virtio_rig.h"

namespace devices::virtio {
namespace {

using test::BlockRig;
using test::Register;

TEST(HostileDriver, RandomSequencesBreakNothing) {
  std::mt19937 random(20240229);
  for (int round = 0; round < 1500; ++round) {
    std::vector<u8> input(400);
    for (u8& byte : input) byte = static_cast<u8>(random());
    test::run_virtio_sequence(input);
  }
}

// Guest memory is written by the guest, which is no part of this program: the sanitizer must not
// see this function, and it writes through volatile as a vCPU would.
#if defined(__clang__) || defined(__GNUC__)
__attribute__((no_sanitize("thread"), noinline))
#endif
void scribble(u8* at, u64 bytes, u32& random) {
  volatile u8* ram = at;
  for (u64 i = 0; i < bytes; ++i) {
    random = random * 1664525 + 1013904223;
    ram[(random >> 8) % bytes] = static_cast<u8>(random >> 24);
  }
}

// G20, G21, G23, G26: one thread rewrites the ring and the descriptors at full speed, one (a vCPU)
// kicks, resets and starts the device again, the queue's own serves, and this one takes the device
// through pause, drain, save, validate and resume.
TEST(HostileDriver, RacingDriverChangesOnlyItsOwnMemory) {
  base::set_log_level(base::LogLevel::error);
  BlockRig rig;
  rig.start();
  for (u16 i = 0; i < 16; ++i) {
    rig.driver().set_descriptor(i, BlockRig::kPayload + i * 512, 512, i % 4, (i + 1) % 16);
  }
  std::atomic<bool> stop{false};
  std::thread guest([&, ram = rig.memory->quiet_ram().data()] {
    u32 random = 7;
    while (!stop) scribble(ram + test::kRings, test::kRingBytes, random);
  });
  std::thread vcpu([&] {
    while (!stop) {
      rig.registers->write(Register::queue_notify, 0);
      if (rig.needs_reset()) {
        rig.registers->negotiate(rig.registers->offered());
        rig.registers->set_queue(0, rig.driver().geometry());
        rig.registers->driver_ok();
      }
      rig.registers->write(Register::interrupt_acknowledge, 3);
    }
  });
  std::thread worker([&] {
    while (!stop) rig.serve();
  });
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(400);
  int rounds = 0;
  while (std::chrono::steady_clock::now() < end) {
    rig.device->pause();
    rig.device->drain();
    rig.device->resume();
    ++rounds;
    std::this_thread::yield();
  }
  stop = true;
  guest.join();
  vcpu.join();
  worker.join();
  rig.device->pause();
  rig.device->drain();
  const MmioState state = rig.device->save();
  EXPECT_TRUE(rig.device->validate(state));
  EXPECT_GT(rounds, 0);
}

// A line that takes its time while it is high, so that a second pulse can fall into the first.
class SlowLine final : public IrqLine {
 public:
  void set(IrqLevel level) override {
    const bool high = level == IrqLevel::high;
    if (high_.exchange(high) && high) ++lost_edges;
    if (high) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  std::atomic<int> lost_edges{0};

 private:
  std::atomic<bool> high_{false};
};

// Two queues complete at the same moment: each must make an edge of its own, or the second is lost
// behind the guest's acknowledgement of the first.
TEST(HostileDriver, TwoQueuesAtOnceMakeTwoEdges) {
  SlowLine irq;
  DeviceStatus status("test", irq);
  const auto raise = [&] {
    for (int i = 0; i < 200; ++i) status.interrupt(kUsedBuffer);
  };
  std::thread one(raise), other(raise);
  one.join();
  other.join();
  EXPECT_EQ(irq.lost_edges, 0);
}

}  // namespace
}  // namespace devices::virtio
