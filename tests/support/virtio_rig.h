// A virtio device with everything around it faked: 4 MiB of RAM, a disk in memory, one driver for
// each queue. The rings lie at 1 MiB, one queue after the other; tests use RAM from 2 MiB on.

#pragma once

#include <memory>
#include <vector>

#include "devices/virtio/block.h"
#include "devices/virtio/mmio.h"
#include "devices/virtio/rng.h"
#include "tests/support/fake_devices.h"
#include "tests/support/mock_disk.h"
#include "tests/support/mock_driver.h"

namespace test {

inline constexpr u64 kRings = base::kMiB;
inline constexpr u64 kRingBytes = 0x4000;
inline constexpr u64 kData = 2 * base::kMiB;
inline constexpr u64 kRamBytes = 4 * base::kMiB;

inline constexpr u64 kAllFeatures = ~u64{0};  // as many as are offered

struct VirtioRig {
  explicit VirtioRig(u16 queue_size = 16) : queue_size_(queue_size) {}

  void build(std::unique_ptr<devices::virtio::DeviceType> type) {
    const u32 count = type->queue_count();
    device =
        std::make_unique<devices::virtio::MmioDevice>(3, *memory, irq, kicker, std::move(type));
    registers = std::make_unique<MockRegisters>(*device);
    for (u32 index = 0; index < count; ++index) {
      drivers.emplace_back(*memory, kRings + index * kRingBytes, queue_size_);
    }
  }
  void start(u64 features = kAllFeatures) {
    registers->negotiate(features == kAllFeatures ? registers->offered() : features);
    for (u32 index = 0; index < drivers.size(); ++index) {
      registers->set_queue(index, drivers[index].geometry());
    }
    registers->driver_ok();
    kicker.take();
    irq.take_edges();
  }
  MockDriver& driver() { return drivers[0]; }
  void serve(u32 index = 0) { device->workers()[index]->serve(); }
  u32 status() { return registers->read(Register::status); }
  bool needs_reset() { return (status() & devices::virtio::kNeedsReset) != 0; }
  u32 interrupts() { return registers->read(Register::interrupt_status); }

  void fill(u64 address, u8 value, u64 length) {
    const std::vector<u8> bytes(length, value);
    if (!memory->write(Gpa{address}, bytes)) std::abort();
  }
  u8 byte(u64 address) {
    u8 value = 0;
    if (!memory->read(Gpa{address}, {&value, 1})) std::abort();
    return value;
  }

  std::unique_ptr<memory::GuestMemory> memory = *memory::GuestMemory::create(kRamBytes);
  FakeIrqLine irq;
  FakeKicker kicker;
  FakeMachine machine;
  std::unique_ptr<devices::virtio::MmioDevice> device;
  std::unique_ptr<MockRegisters> registers;
  std::vector<MockDriver> drivers;

 private:
  const u16 queue_size_;
};

struct BlockRig : VirtioRig {
  static constexpr u64 kDiskBytes = base::kMiB;
  static constexpr u64 kHeader = kData;           // of request n: + n * 32
  static constexpr u64 kStatus = kData + 0x8000;  // of request n: + n
  static constexpr u64 kPayload = kData + 0x10000;

  explicit BlockRig(devices::virtio::BlockOptions options = {}, u16 queue_size = 16,
                    u64 disk_bytes = kDiskBytes)
      : VirtioRig(queue_size), disk(disk_bytes) {
    prepare(std::move(options));
  }
  enum class ReadOnly : u8 { yes };
  explicit BlockRig(ReadOnly) : VirtioRig(16), disk(kDiskBytes) {
    disk.read_only = true;
    prepare({});
  }
  ~BlockRig() { device.reset(); }

  void put_header(u32 request, u32 type, u64 sector) {
    MockDriver& d = driver();
    d.put(kHeader + request * 32, le32(type));
    d.put(kHeader + request * 32 + 4, le32(0));
    d.put(kHeader + request * 32 + 8, le64(sector));
    fill(kStatus + request, 0xee, 1);
  }
  // Header, data, status byte: published, not served.
  u16 request(u32 n, u32 type, u64 sector, std::vector<Buffer> data = {}) {
    put_header(n, type, sector);
    data.insert(data.begin(), Buffer{kHeader + n * 32, 16});
    data.push_back({kStatus + n, 1, kWrite});
    const u16 head = driver().add(data);
    driver().publish(head);
    return head;
  }
  // Served to its end; the status byte.
  u8 answer(u32 type, u64 sector, std::vector<Buffer> data = {}) {
    request(0, type, sector, std::move(data));
    for (int i = 0; i < 4; ++i) serve();  // at_poll: one poll for each range, and one to begin
    driver().take_used();
    return byte(kStatus);
  }
  u8 status_of(u32 n) { return byte(kStatus + n); }

  MockDisk disk;

 private:
  void prepare(devices::virtio::BlockOptions options) {
    if (options.name.empty()) options.name = "root";
    if (options.serial.empty()) options.serial = "disk-serial";
    build(*devices::virtio::Block::create(*memory, disk, machine, std::move(options)));
  }
};

struct RngRig : VirtioRig {
  RngRig() : VirtioRig(16) { build(std::make_unique<devices::virtio::Rng>(*memory)); }
};

}  // namespace test
