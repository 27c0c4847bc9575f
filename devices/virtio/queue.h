// Queue: the device's side of one split virtqueue (virtio 1.2, 2.7).
//
// Everything in the ring is the guest's and changes while we look: each index and each descriptor
// is copied once, the copy is checked, and only the copy is used. A ring that breaks a rule makes
// take() answer Broken; the caller then stops the device.
//
// Invariant: a descriptor belongs to the device from take() until complete(). It cannot be taken
// twice, so a head names at most one request in flight.
// Invariant: next_avail - next_used (modulo 2^16) is the number of chains taken and not completed.
//
// Thread: one at a time; the QueueRunner's lock.

#pragma once

#include <array>
#include <bitset>
#include <variant>
#include <vector>

#include "devices/virtio/chain.h"
#include "vmm/base/codec.h"
#include "vmm/base/result.h"
#include "vmm/memory/guest_memory.h"

namespace devices::virtio {

inline constexpr u32 kMaxQueueSize = 256;  // descriptors; also the longest chain, 2.7.5.3.1

struct QueueState {
  // Written through registers before DRIVER_OK, and fixed from then on.
  u32 size = 0;
  bool ready = false;
  u64 descriptor_table = 0;
  u64 avail_ring = 0;
  u64 used_ring = 0;
  // Free-running, modulo 2^16.
  u16 next_avail = 0;
  u16 next_used = 0;
  // next_used when the guest was last interrupted, for VIRTIO_F_EVENT_IDX. A stale value would
  // swallow the first interrupt after a revert.
  u16 signalled_used = 0;
  // Heads of requests that wait for resume().
  std::vector<u16> held;

  static constexpr auto fields() {
    using S = QueueState;
    return std::tuple(
        base::field<1>("size", &S::size), base::field<2>("ready", &S::ready),
        base::field<3>("descriptor_table", &S::descriptor_table),
        base::field<4>("avail_ring", &S::avail_ring), base::field<5>("used_ring", &S::used_ring),
        base::field<6>("next_avail", &S::next_avail), base::field<7>("next_used", &S::next_used),
        base::field<8>("signalled_used", &S::signalled_used), base::field<9>("held", &S::held));
  }
};

// The rule of DRIVER_OK, also for a restored state: size a power of two within the limit, the three
// parts aligned (16, 2, 4: virtio 1.2, 2.7 "Split Virtqueues") and each within RAM.
Result<void> check_geometry(const QueueState& queue, const memory::GuestMemory& memory);

enum class EventIndex : u8 { off, on };  // VIRTIO_F_EVENT_IDX
enum class Indirect : u8 { off, on };    // VIRTIO_F_INDIRECT_DESC

class Queue final {
 public:
  struct Empty {};
  struct Broken {
    const char* rule;  // what the guest broke
  };
  using Taken = std::variant<Empty, Broken, Chain>;

  explicit Queue(memory::GuestMemory& memory) : memory_(memory) {}

  // REQUIRES: check_geometry(state) passed; state.held holds distinct heads below the size.
  void start(const QueueState& state, EventIndex event_index, Indirect indirect);
  void stop();
  bool is_started() const { return started_; }

  // The next chain of the ring; it is valid until the next take() or retake().
  Taken take();
  // A chain that was taken before and is still the device's, read and checked anew.
  Taken retake(u16 head);

  // Gives a chain back. REQUIRES: `head` is the device's.
  void complete(u16 head, u32 written_bytes);

  // Asks for a notification of the next chain. True if one is there already.
  bool arm_notification();
  // Whether the guest wants an interrupt for what was completed since the last call.
  bool take_interrupt_request();

  // The indices; held and geometry belong to the caller.
  u16 next_avail() const { return next_avail_; }
  u16 next_used() const { return next_used_; }
  u16 signalled_used() const { return signalled_used_; }

 private:
  Taken walk(u16 head);
  Taken read_chain(u16 head);
  const char* add_descriptor(u64 address, u32 length, u16 flags);
  const char* read_indirect(u64 address, u32 length);
  void release(u16 head);

  memory::GuestMemory& memory_;
  bool started_ = false;
  EventIndex event_index_ = EventIndex::off;
  Indirect indirect_ = Indirect::off;
  u16 size_ = 0;
  u64 descriptor_table_ = 0;
  u64 avail_ring_ = 0;
  u64 used_ring_ = 0;
  u16 next_avail_ = 0;
  u16 next_used_ = 0;
  u16 signalled_used_ = 0;

  // Which descriptors of the table are the device's, and how we read their chains: derived from the
  // chains taken; held heads only, when drained.
  std::bitset<kMaxQueueSize> owned_;
  std::array<u16, kMaxQueueSize> chain_next_{};  // kNoDescriptor ends a chain

  // Scratch of the chain last taken.
  ChainOrder order_ = ChainOrder::readable_first;
  u32 readable_count_ = 0;
  u32 writable_count_ = 0;
  std::array<Segment, kMaxQueueSize> readable_{};
  std::array<Segment, kMaxQueueSize> writable_{};
};

}  // namespace devices::virtio
