#include "devices/virtio/block_requests.h"

#include <algorithm>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace devices::virtio {
namespace {

using blockdev::BlockOp;
using blockdev::BlockStatus;
using blockdev::kSectorBytes;

// virtio 1.2, 5.2.6 "Device Operation"
struct Header {
  le32 type;      //  0  RequestType
  le32 reserved;  //  4
  le64 sector;    //  8
};
static_assert(base::WireType<Header> && sizeof(Header) == 16);

enum RequestType : u32 {
  kIn = 0,            // VIRTIO_BLK_T_IN
  kOut = 1,           // VIRTIO_BLK_T_OUT
  kFlush = 4,         // VIRTIO_BLK_T_FLUSH
  kGetId = 8,         // VIRTIO_BLK_T_GET_ID
  kDiscard = 11,      // VIRTIO_BLK_T_DISCARD
  kWriteZeroes = 13,  // VIRTIO_BLK_T_WRITE_ZEROES
};

// struct virtio_blk_discard_write_zeroes
struct RangeOnWire {
  le64 sector;       //  0
  le32 num_sectors;  //  8
  le32 flags;        // 12  bit 0: unmap
};
static_assert(base::WireType<RangeOnWire> && sizeof(RangeOnWire) == 16);
constexpr u32 kUnmapFlag = 1;

constexpr u64 kStatusBytes = 1;

template <base::WireType T>
bool read_struct(const Chain& chain, const memory::GuestMemory& memory, u64 offset, T& out) {
  return chain.read(memory, offset, {reinterpret_cast<u8*>(&out), sizeof out});
}

}  // namespace

BlockRequests::BlockRequests(const BlockLimits& limits, memory::GuestMemory& memory,
                             MachineEvents& machine, std::unique_ptr<blockdev::BlockQueue> disk)
    : limits_(limits),
      memory_(memory),
      machine_(machine),
      slots_(new Slot[kSlotCount]),
      disk_(std::move(disk)) {
  free_slots_.reserve(kSlotCount);
  for (u32 index = kSlotCount; index-- != 0;) free_slots_.push_back(&slots_[index]);
}

BeginResult BlockRequests::begin(const Chain& chain, ChainSink& sink) {
  // 5.2.6: the status byte ends the writable part.
  if (chain.writable_bytes() < kStatusBytes) return BeginResult::malformed;
  CHECK(!free_slots_.empty());
  Slot& slot = *free_slots_.back();
  free_slots_.pop_back();
  slot.sink = &sink;
  slot.head = chain.head();
  slot.writable_bytes = chain.writable_bytes();
  slot.filled_bytes = 0;
  slot.status = *chain.writable_address(chain.writable_bytes() - kStatusBytes);
  slot.transfer_bytes = 0;
  slot.range_count = slot.range_next = 0;
  slot.client = this;
  slot.unmap = blockdev::Unmap::no;
  slot.buffers = {};

  const std::optional<Status> answer = prepare(slot, chain);
  if (answer) {
    finish(slot, *answer);
  } else if (slot.range_count != 0) {
    submit_next_piece(slot);
  } else {
    in_flight_bytes_ += slot.transfer_bytes;
    disk_->submit(slot);
  }
  return BeginResult::begun;
}

std::optional<BlockRequests::Status> BlockRequests::prepare(Slot& slot, const Chain& chain) {
  Header header;
  if (chain.order() == ChainOrder::mixed || !read_struct(chain, memory_, 0, header)) {
    return Status::io_error;
  }
  switch (u32{header.type}) {
    case kIn: return prepare_read(slot, chain, header.sector);
    case kOut: return prepare_write(slot, chain, header.sector);
    case kFlush: return prepare_flush(slot, chain);
    case kDiscard: return prepare_ranges(slot, chain, BlockOp::discard);
    case kWriteZeroes: return prepare_ranges(slot, chain, BlockOp::write_zeroes);
    case kGetId: return answer_id(slot, chain);
    default: return Status::unsupported;
  }
}

bool BlockRequests::is_transfer(u64 sector, u64 length_bytes) const {
  const std::optional<u64> offset = base::checked_multiply(sector, kSectorBytes);
  return length_bytes != 0 && length_bytes % kSectorBytes == 0 && offset &&
         base::contains(limits_.capacity_bytes, *offset, length_bytes);
}

std::optional<BlockRequests::Status> BlockRequests::prepare_read(Slot& slot, const Chain& chain,
                                                                 u64 sector) {
  const u64 length = chain.writable_bytes() - kStatusBytes;
  if (!is_transfer(sector, length) || length > kMaxTransferBytes) return Status::io_error;
  const std::optional<u32> count = chain.writable_iovecs(memory_, 0, length, slot.iovecs);
  if (!count) return Status::io_error;
  slot.op = BlockOp::read;
  slot.offset_bytes = sector * kSectorBytes;
  slot.length_bytes = slot.transfer_bytes = length;
  slot.buffers = std::span(slot.iovecs).first(*count);
  slot.filled_bytes = length;
  return std::nullopt;
}

std::optional<BlockRequests::Status> BlockRequests::prepare_write(Slot& slot, const Chain& chain,
                                                                  u64 sector) {
  const u64 length = chain.readable_bytes() - sizeof(Header);
  // Whether the driver negotiated VIRTIO_BLK_F_RO or not.
  if (limits_.is_read_only || !is_transfer(sector, length) || length > kMaxTransferBytes) {
    return Status::io_error;
  }
  const std::optional<u32> count =
      chain.readable_iovecs(memory_, sizeof(Header), length, slot.iovecs);
  if (!count) return Status::io_error;
  slot.op = BlockOp::write;
  slot.offset_bytes = sector * kSectorBytes;
  slot.length_bytes = slot.transfer_bytes = length;
  slot.buffers = std::span(slot.iovecs).first(*count);
  return std::nullopt;
}

std::optional<BlockRequests::Status> BlockRequests::prepare_flush(Slot& slot, const Chain& chain) {
  if (chain.readable_bytes() != sizeof(Header) || chain.writable_bytes() != kStatusBytes) {
    return Status::io_error;
  }
  slot.op = BlockOp::flush;
  slot.offset_bytes = slot.length_bytes = 0;
  return std::nullopt;
}

std::optional<BlockRequests::Status> BlockRequests::prepare_ranges(Slot& slot, const Chain& chain,
                                                                   BlockOp op) {
  const u64 length = chain.readable_bytes() - sizeof(Header);
  const u64 count = length / sizeof(RangeOnWire);
  if (limits_.is_read_only || length % sizeof(RangeOnWire) != 0 || count == 0 ||
      count > kMaxRanges) {
    return Status::io_error;
  }
  u32 unmap_count = 0;
  for (u64 index = 0; index < count; ++index) {
    RangeOnWire range;
    const u64 offset = sizeof(Header) + index * sizeof(RangeOnWire);
    if (!read_struct(chain, memory_, offset, range)) return Status::io_error;
    // 5.2.6.2: unknown flags, and unmap in a discard, are unsupported.
    const u32 allowed_flags = op == BlockOp::write_zeroes ? kUnmapFlag : 0;
    if ((range.flags & ~allowed_flags) != 0) return Status::unsupported;
    if ((range.flags & kUnmapFlag) != 0) ++unmap_count;
    const u64 bytes = u64{range.num_sectors} * kSectorBytes;
    if (range.num_sectors > kMaxRangeSectors || !is_transfer(range.sector, bytes)) {
      return Status::io_error;
    }
    slot.ranges[index] = {range.sector * kSectorBytes, bytes};
  }
  slot.op = op;
  // Unmapping is a permission, so it holds for the request only if every range gives it.
  if (unmap_count == count) slot.unmap = blockdev::Unmap::yes;
  slot.range_count = static_cast<u32>(count);
  return std::nullopt;
}

BlockRequests::Status BlockRequests::answer_id(Slot& slot, const Chain& chain) {
  // 5.2.6: 20 bytes, NUL-padded.
  if (chain.writable_bytes() - kStatusBytes < limits_.serial.size() ||
      !chain.write(memory_, 0, limits_.serial)) {
    return Status::io_error;
  }
  slot.filled_bytes = limits_.serial.size();
  return Status::ok;
}

void BlockRequests::submit_next_piece(Slot& slot) {
  Range& range = slot.ranges[slot.range_next];
  slot.offset_bytes = range.offset_bytes;
  // Up to the next boundary: the disk has larger units of its own.
  slot.length_bytes =
      std::min(range.length_bytes, kRangePieceBytes - range.offset_bytes % kRangePieceBytes);
  range.offset_bytes += slot.length_bytes;
  range.length_bytes -= slot.length_bytes;
  if (range.length_bytes == 0) ++slot.range_next;
  disk_->submit(slot);
}

void BlockRequests::submit_flush(Slot& slot) {
  slot.op = BlockOp::flush;
  slot.offset_bytes = slot.length_bytes = 0;
  slot.buffers = {};
  disk_->submit(slot);
}

void BlockRequests::on_done(blockdev::BlockRequest& request, BlockStatus status) {
  Slot& slot = static_cast<Slot&>(request);
  if (status == BlockStatus::ok && slot.range_next == slot.range_count) {
    const bool is_change = slot.op != BlockOp::read && slot.op != BlockOp::flush;
    is_change&& is_written_through_ ? submit_flush(slot) : finish(slot, Status::ok);
  } else if ((status == BlockStatus::ok && slot.sink->must_yield()) ||
             status == BlockStatus::not_begun) {
    hold(slot);
  } else if (status == BlockStatus::ok) {
    submit_next_piece(slot);
  } else if (status == BlockStatus::no_space && limits_.on_no_space == OnNoSpace::pause) {
    hold(slot);
    machine_.out_of_space(limits_.name);
  } else {
    finish(slot, Status::io_error);
  }
}

// The whole request again, later: doing a part of it twice changes nothing.
void BlockRequests::hold(Slot& slot) {
  ChainSink& sink = *slot.sink;
  const u16 head = slot.head;
  free(slot);
  sink.hold(head);
}

void BlockRequests::free(Slot& slot) {
  in_flight_bytes_ -= slot.transfer_bytes;
  free_slots_.push_back(&slot);
}

void BlockRequests::finish(Slot& slot, Status status) {
  ChainSink& sink = *slot.sink;
  const u16 head = slot.head;
  const u32 length = used_length(slot, status);
  const u8 byte = static_cast<u8>(status);
  CHECK(memory_.write(slot.status, std::span(&byte, 1)));  // checked when the chain was taken
  free(slot);
  sink.complete(head, length);
}

// virtio 1.2, 2.7.8.2 "Device Requirements: The Virtqueue Used Ring": what is surely written, from
// the first writable byte on. The status byte counts only if nothing unwritten lies before it.
u32 BlockRequests::used_length(const Slot& slot, Status status) {
  const u64 filled = status == Status::ok ? slot.filled_bytes : 0;
  const bool reaches_status = filled + kStatusBytes == slot.writable_bytes;
  return static_cast<u32>(reaches_status ? slot.writable_bytes : filled);
}

}  // namespace devices::virtio
