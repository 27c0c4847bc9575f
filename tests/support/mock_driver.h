// MockDriver: the driver's side of one virtqueue, in fake RAM, and of the MMIO registers. It can do
// what a good driver does (add, publish, take_used) and, field by field, what a bad one does.

#pragma once

#include <optional>
#include <span>
#include <vector>

#include "devices/virtio/mmio.h"
#include "devices/virtio/mmio_registers.h"
#include "devices/virtio/queue.h"

namespace test {

using devices::virtio::Register;

inline constexpr u16 kNext = 1;
inline constexpr u16 kWrite = 2;
inline constexpr u16 kIndirect = 4;

struct Buffer {
  u64 address;
  u32 length;
  u16 flags = 0;  // kWrite
};

struct Used {
  u32 id;
  u32 length;
  friend bool operator==(const Used&, const Used&) = default;
};

class MockDriver final {
 public:
  // The rings lie at `base`, within 16 KiB.
  MockDriver(memory::GuestMemory& memory, u64 base, u16 size)
      : memory_(memory), size_(size), table_(base), avail_(base + 0x2000), used_(base + 0x3000) {}

  devices::virtio::QueueState geometry() const {
    devices::virtio::QueueState state;
    state.size = size_;
    state.ready = true;
    state.descriptor_table = table_;
    state.avail_ring = avail_;
    state.used_ring = used_;
    return state;
  }
  u16 size() const { return size_; }

  // A chain of direct descriptors; returns its head. The caller sees to it that no more than the
  // queue's size are in use.
  u16 add(std::span<const Buffer> buffers) {
    const u16 head = next_free_;
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      const u16 index = static_cast<u16>((head + i) % size_);
      const bool last = i + 1 == buffers.size();
      set_descriptor(index, buffers[i].address, buffers[i].length,
                     static_cast<u16>(buffers[i].flags | (last ? 0 : kNext)),
                     static_cast<u16>(last ? 0 : (index + 1) % size_));
    }
    next_free_ = static_cast<u16>((head + buffers.size()) % size_);
    return head;
  }
  // The same behind one indirect descriptor; its table lies at `table`.
  u16 add_indirect(u64 table, std::span<const Buffer> buffers) {
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      const bool last = i + 1 == buffers.size();
      write_descriptor(table + i * 16, buffers[i].address, buffers[i].length,
                       static_cast<u16>(buffers[i].flags | (last ? 0 : kNext)),
                       static_cast<u16>(last ? 0 : i + 1));
    }
    const u16 head = next_free_;
    set_descriptor(head, table, static_cast<u32>(buffers.size() * 16), kIndirect, 0);
    next_free_ = static_cast<u16>((head + 1) % size_);
    return head;
  }
  void publish(u16 head) {
    set_avail_element(avail_index_ % size_, head);
    set_avail_index(static_cast<u16>(avail_index_ + 1));
  }
  void send(std::span<const Buffer> buffers) { publish(add(buffers)); }

  std::optional<Used> take_used() {
    if (used_index() == used_seen_) return std::nullopt;
    const u64 at = used_ + 4 + u64{used_seen_} % size_ * 8;
    ++used_seen_;
    return Used{*memory_.read<le32>(Gpa{at}), *memory_.read<le32>(Gpa{at + 4})};
  }
  u16 used_index() const { return *memory_.read<le16>(Gpa{used_ + 2}); }
  u16 avail_event() const { return *memory_.read<le16>(Gpa{used_ + 4 + u64{size_} * 8}); }

  void set_descriptor(u16 index, u64 address, u32 length, u16 flags, u16 next) {
    write_descriptor(table_ + u64{index} * 16, address, length, flags, next);
  }
  void write_descriptor(u64 at, u64 address, u32 length, u16 flags, u16 next) {
    put(at, le64(address));
    put(at + 8, le32(length));
    put(at + 12, le16(flags));
    put(at + 14, le16(next));
  }
  void set_avail_element(u16 element, u16 head) { put(avail_ + 4 + u64{element} * 2, le16(head)); }
  void set_avail_index(u16 index) {
    avail_index_ = index;
    if (!memory_.store_release_u16(Gpa{avail_ + 2}, index)) std::abort();
  }
  void set_avail_flags(u16 flags) { put(avail_, le16(flags)); }
  void set_used_event(u16 index) { put(avail_ + 4 + u64{size_} * 2, le16(index)); }
  u16 avail_index() const { return avail_index_; }

  // Forgets everything, as a driver does that starts anew.
  void restart() {
    next_free_ = used_seen_ = avail_index_ = 0;
    put(avail_, le32(0));
    put(used_, le32(0));
  }

  template <base::WireType T>
  void put(u64 address, const T& value) {
    if (!memory_.write(Gpa{address}, value)) std::abort();
  }

 private:
  memory::GuestMemory& memory_;
  const u16 size_;
  const u64 table_;
  const u64 avail_;
  const u64 used_;
  u16 next_free_ = 0;
  u16 used_seen_ = 0;
  u16 avail_index_ = 0;
};

// The register side.
class MockRegisters final {
 public:
  explicit MockRegisters(devices::BusHandler& device) : device_(device) {}

  u32 read(Register which) {
    u8 data[4];
    device_.read(static_cast<u64>(which), data);
    le32 value;
    std::memcpy(&value, data, 4);
    return value;
  }
  void write(Register which, u32 value) {
    const le32 wire(value);
    u8 data[4];
    std::memcpy(data, &wire, 4);
    device_.write(static_cast<u64>(which), data);
  }

  void set_status(u32 bits) { write(Register::status, read(Register::status) | bits); }
  u64 offered() {
    u64 features = 0;
    for (u32 half = 0; half < 2; ++half) {
      write(Register::device_features_select, half);
      features |= u64{read(Register::device_features)} << (half * 32);
    }
    return features;
  }
  void write_features(u64 features) {
    for (u32 half = 0; half < 2; ++half) {
      write(Register::driver_features_select, half);
      write(Register::driver_features, static_cast<u32>(features >> (half * 32)));
    }
  }
  void negotiate(u64 features) {
    using namespace devices::virtio;
    write(Register::status, 0);
    set_status(kAcknowledge);
    set_status(kDriver);
    write_features(features);
    set_status(kFeaturesOk);
  }
  void set_queue(u32 index, const devices::virtio::QueueState& queue) {
    write(Register::queue_select, index);
    write(Register::queue_size, queue.size);
    write_address(Register::queue_descriptor_low, queue.descriptor_table);
    write_address(Register::queue_driver_low, queue.avail_ring);
    write_address(Register::queue_device_low, queue.used_ring);
    write(Register::queue_ready, queue.ready ? 1 : 0);
  }
  void write_address(Register low, u64 address) {
    write(low, static_cast<u32>(address));
    write(static_cast<Register>(static_cast<u32>(low) + 4), static_cast<u32>(address >> 32));
  }
  void driver_ok() { set_status(devices::virtio::kDriverOk); }

 private:
  devices::BusHandler& device_;
};

}  // namespace test
