#include "devices/virtio/queue.h"

#include <atomic>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"
#include "vmm/base/wire.h"

namespace devices::virtio {
namespace {

// virtio 1.2, 2.7.5 "The Virtqueue Descriptor Table"
struct Descriptor {
  le64 addr;   //  0  guest-physical
  le32 len;    //  8
  le16 flags;  // 12  DescriptorFlag
  le16 next;   // 14  valid only with kNext
};
static_assert(base::WireType<Descriptor> && sizeof(Descriptor) == 16);

enum DescriptorFlag : u16 {
  kNext = 1,      // VIRTQ_DESC_F_NEXT
  kWrite = 2,     // VIRTQ_DESC_F_WRITE
  kIndirect = 4,  // VIRTQ_DESC_F_INDIRECT
};

// virtio 1.2, 2.7.8 "The Virtqueue Used Ring"
struct UsedElement {
  le32 id;
  le32 len;
};
static_assert(base::WireType<UsedElement> && sizeof(UsedElement) == 8);

// Both rings: flags:le16, idx:le16, the elements, and one le16 for VIRTIO_F_EVENT_IDX.
constexpr u64 kFlagsOffset = 0;
constexpr u64 kIndexOffset = 2;
constexpr u64 kElementsOffset = 4;
constexpr u64 kEventBytes = 2;
constexpr u16 kNoInterrupt = 1;  // VIRTQ_AVAIL_F_NO_INTERRUPT

constexpr u64 descriptor_table_bytes(u64 size) { return size * sizeof(Descriptor); }
constexpr u64 avail_ring_bytes(u64 size) {
  return kElementsOffset + size * sizeof(le16) + kEventBytes;
}
constexpr u64 used_ring_bytes(u64 size) {
  return kElementsOffset + size * sizeof(UsedElement) + kEventBytes;
}

constexpr u16 kNoDescriptor = 0xffff;

Result<void> check_part(const char* name, u64 address, u64 length, u64 alignment,
                        const memory::GuestMemory& memory) {
  if (!base::is_aligned(address, alignment)) {
    return make_error(ErrorKind::corrupt, "{} at {:#x} is not aligned to {}", name, address,
                      alignment);
  }
  if (!memory.ram_offset(Gpa{address}, length)) {
    return make_error(ErrorKind::corrupt, "{} at {:#x} (size {:#x}) is outside RAM", name, address,
                      length);
  }
  return {};
}

}  // namespace

Result<void> check_geometry(const QueueState& queue, const memory::GuestMemory& memory) {
  if (!base::is_power_of_two(queue.size) || queue.size > kMaxQueueSize) {
    return make_error(ErrorKind::corrupt, "queue size {} is not a power of two up to {}",
                      queue.size, kMaxQueueSize);
  }
  TRY(check_part("descriptor table", queue.descriptor_table, descriptor_table_bytes(queue.size), 16,
                 memory));
  TRY(check_part("avail ring", queue.avail_ring, avail_ring_bytes(queue.size), 2, memory));
  TRY(check_part("used ring", queue.used_ring, used_ring_bytes(queue.size), 4, memory));
  return {};
}

void Queue::start(const QueueState& state, EventIndex event_index, Indirect indirect) {
  started_ = true;
  event_index_ = event_index;
  indirect_ = indirect;
  size_ = static_cast<u16>(state.size);
  descriptor_table_ = state.descriptor_table;
  avail_ring_ = state.avail_ring;
  used_ring_ = state.used_ring;
  next_avail_ = state.next_avail;
  next_used_ = state.next_used;
  signalled_used_ = state.signalled_used;
  owned_.reset();
  // Their other descriptors become ours again with retake().
  for (const u16 head : state.held) {
    owned_.set(head);
    chain_next_[head] = kNoDescriptor;
  }
}

void Queue::stop() {
  started_ = false;
  next_avail_ = next_used_ = signalled_used_ = 0;
  owned_.reset();
}

Queue::Taken Queue::take() {
  // Acquire: pairs with the driver's barrier between filling the avail ring's element (and the
  // descriptors) and storing avail.idx (2.7.13.3 "Updating The Available Ring", step 4).
  const std::optional<u16> avail_index = memory_.load_acquire_u16(Gpa{avail_ring_ + kIndexOffset});
  if (!avail_index) return Broken{"the avail ring is outside RAM"};
  const u16 ahead = static_cast<u16>(*avail_index - next_avail_);
  if (ahead == 0) return Empty{};
  // Also what an index that goes backwards looks like.
  if (ahead > size_) return Broken{"avail.idx is ahead by more than the queue's size"};

  const u64 element = u64{next_avail_} % size_;
  const std::optional<le16> head =
      memory_.read<le16>(Gpa{avail_ring_ + kElementsOffset + element * sizeof(le16)});
  if (!head) return Broken{"the avail ring is outside RAM"};
  const u16 head_index = *head;
  if (head_index >= size_) return Broken{"a head is outside the descriptor table"};

  Taken taken = walk(head_index);
  if (std::holds_alternative<Chain>(taken)) ++next_avail_;
  return taken;
}

Queue::Taken Queue::retake(u16 head) {
  CHECK(head < size_ && owned_.test(head));
  release(head);
  Taken taken = walk(head);
  if (!std::holds_alternative<Chain>(taken)) {
    // Still ours and still not completed.
    owned_.set(head);
    chain_next_[head] = kNoDescriptor;
  }
  return taken;
}

// Takes the chain's descriptors, or none of them.
Queue::Taken Queue::walk(u16 head) {
  if (owned_.test(head)) return Broken{"a head was made available twice"};
  Taken taken = read_chain(head);
  if (std::holds_alternative<Broken>(taken)) release(head);
  return taken;
}

// Ends because every step takes a descriptor that was free, and there are at most size_ of them.
Queue::Taken Queue::read_chain(u16 head) {
  order_ = ChainOrder::readable_first;
  readable_count_ = writable_count_ = 0;
  u16 previous = kNoDescriptor;
  for (u16 index = head;;) {
    if (index >= size_) return Broken{"a descriptor's next is outside the table"};
    if (owned_.test(index)) return Broken{"a descriptor is in two chains, or twice in one"};
    owned_.set(index);
    chain_next_[index] = kNoDescriptor;
    if (previous != kNoDescriptor) chain_next_[previous] = index;
    previous = index;

    const std::optional<Descriptor> descriptor =
        memory_.read<Descriptor>(Gpa{descriptor_table_ + index * sizeof(Descriptor)});
    if (!descriptor) return Broken{"the descriptor table is outside RAM"};
    const u16 flags = descriptor->flags;
    if ((flags & kIndirect) != 0) {
      if (indirect_ == Indirect::off) return Broken{"an indirect table was not negotiated"};
      // 2.7.5.3.1: a driver must not set both flags.
      if ((flags & kNext) != 0) return Broken{"a descriptor is indirect and has a next"};
      const char* broken = read_indirect(descriptor->addr, descriptor->len);
      if (broken != nullptr) return Broken{broken};
      break;
    }
    const char* broken = add_descriptor(descriptor->addr, descriptor->len, flags);
    if (broken != nullptr) return Broken{broken};
    if ((flags & kNext) == 0) break;
    index = descriptor->next;
  }
  return Chain(head, std::span(readable_).first(readable_count_),
               std::span(writable_).first(writable_count_), order_);
}

// One level, 2.7.5.3 "Indirect Descriptors".
const char* Queue::read_indirect(u64 address, u32 length) {
  if (length == 0 || length % sizeof(Descriptor) != 0) return "an indirect table has a bad length";
  const u32 count = length / sizeof(Descriptor);
  if (count > size_) return "an indirect table is longer than the queue";
  if (!memory_.ram_offset(Gpa{address}, length)) return "an indirect table is outside RAM";
  u32 index = 0;
  for (u32 steps = 0; steps < count; ++steps) {
    const std::optional<Descriptor> descriptor =
        memory_.read<Descriptor>(Gpa{address + index * sizeof(Descriptor)});
    if (!descriptor) return "an indirect table is outside RAM";
    const u16 flags = descriptor->flags;
    if ((flags & kIndirect) != 0) return "an indirect table in an indirect table";
    const char* broken = add_descriptor(descriptor->addr, descriptor->len, flags);
    if (broken != nullptr) return broken;
    if ((flags & kNext) == 0) return nullptr;
    index = descriptor->next;
    if (index >= count) return "a next is outside the indirect table";
  }
  return "an indirect table loops";
}

const char* Queue::add_descriptor(u64 address, u32 length, u16 flags) {
  // Says nothing about memory, so there is nothing to check; a chain of these alone is empty.
  if (length == 0) return nullptr;
  if (readable_count_ + writable_count_ == size_) return "a chain is longer than the queue";
  if (!memory_.ram_offset(Gpa{address}, length)) return "a buffer is outside RAM";
  if ((flags & kWrite) != 0) {
    writable_[writable_count_++] = {Gpa{address}, length};
  } else {
    if (writable_count_ != 0) order_ = ChainOrder::mixed;
    readable_[readable_count_++] = {Gpa{address}, length};
  }
  return nullptr;
}

void Queue::release(u16 head) {
  for (u16 index = head; index != kNoDescriptor; index = chain_next_[index]) owned_.reset(index);
}

void Queue::complete(u16 head, u32 written_bytes) {
  CHECK(started_ && head < size_ && owned_.test(head));
  release(head);
  const UsedElement element{u32{head}, written_bytes};
  const u64 offset = kElementsOffset + u64{next_used_} % size_ * sizeof(UsedElement);
  ++next_used_;
  // In RAM since check_geometry(), and RAM does not change; so a failure would be ours.
  CHECK(memory_.write(Gpa{used_ring_ + offset}, element));
  // Release: pairs with the driver's barrier between loading used.idx and reading the element and
  // the buffers (2.7.14 "Receiving Used Buffers From The Device").
  CHECK(memory_.store_release_u16(Gpa{used_ring_ + kIndexOffset}, next_used_));
}

bool Queue::arm_notification() {
  // Without EVENT_IDX we never ask for silence, so there is nothing to arm.
  if (event_index_ == EventIndex::off) return false;
  const u64 avail_event = used_ring_ + kElementsOffset + u64{size_} * sizeof(UsedElement);
  CHECK(memory_.store_release_u16(Gpa{avail_event}, next_avail_));
  // Full: pairs with the driver's barrier between storing avail.idx and loading avail_event
  // (2.7.13.4.1 "Driver Requirements: Notifying The Device"). One of the two sees the other.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return memory_.load_acquire_u16(Gpa{avail_ring_ + kIndexOffset}) != next_avail_;
}

bool Queue::take_interrupt_request() {
  if (next_used_ == signalled_used_) return false;
  const u16 before = signalled_used_;
  signalled_used_ = next_used_;
  // Full: pairs with the driver's barrier between storing used_event (or avail.flags) and looking
  // at used.idx once more.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (event_index_ == EventIndex::off) {
    const std::optional<u16> flags = memory_.load_acquire_u16(Gpa{avail_ring_ + kFlagsOffset});
    return flags && (*flags & kNoInterrupt) == 0;
  }
  // 2.7.7.2: interrupt when used.idx has moved past used_event.
  const u64 used_event_address = avail_ring_ + kElementsOffset + u64{size_} * sizeof(le16);
  const std::optional<u16> used_event = memory_.load_acquire_u16(Gpa{used_event_address});
  return used_event &&
         static_cast<u16>(next_used_ - *used_event - 1) < static_cast<u16>(next_used_ - before);
}

}  // namespace devices::virtio
