// BlockRequests: one virtqueue's requests to a disk: from a chain to a BlockRequest, and from its
// end to the status byte.
//
// A fixed number of slots; while none is free, chains wait in the ring. The data of a request is
// never copied: the disk reads and writes guest memory itself. So a request in flight costs its
// slot and nothing else, whatever its length.
//
// Nothing here takes long, whatever the guest asks for: a transfer is at most kMaxTransferBytes,
// and a discard of gigabytes goes in pieces and is held, to be begun anew, when a pause comes.
//
// Invariant: everything a slot holds was checked when it was filled; nothing is read again from
// guest memory.
// Thread: under the queue's lock.

#pragma once

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "blockdev/block_backend.h"
#include "devices/virtio/block.h"
#include "devices/virtio/handler.h"

namespace devices::virtio {

// Enough for half a MiB of single pages, and small enough that all slots together stay in the
// cache.
inline constexpr u32 kMaxDataSegments = 126;
// What the driver is told (5.2.4, size_max). It is Linux's own default, BLK_MAX_SEGMENT_SIZE; its
// requests are limited by max_sectors, 1280 KiB or 4 MiB, before they have 126 of these.
inline constexpr u32 kMaxSegmentBytes = 64 * base::kKiB;
// The longest transfer of a driver that keeps to both. Longer ones are refused, for pause() waits
// for the transfer at hand.
inline constexpr u64 kMaxTransferBytes = u64{kMaxDataSegments} * kMaxSegmentBytes;
// Beyond this, further requests wait in the ring: drain() waits for what is in flight.
inline constexpr u64 kMaxInFlightBytes = 16 * base::kMiB;

inline constexpr u32 kMaxRanges = 16;              // of one discard or write-zeroes
inline constexpr u32 kMaxRangeSectors = 1u << 22;  // 2 GiB
// Ranges are handed to the disk in pieces, between which a pause gets in.
inline constexpr u64 kRangePieceBytes = 16 * base::kMiB;

struct BlockLimits {
  std::string name;
  std::array<u8, 20> serial{};
  u64 capacity_bytes = 0;
  bool is_read_only = false;
  OnNoSpace on_no_space = OnNoSpace::pause;
};

class BlockRequests final : public QueueHandler, private blockdev::BlockClient {
 public:
  static constexpr u32 kSlotCount = 64;

  BlockRequests(const BlockLimits& limits, memory::GuestMemory& memory, MachineEvents& machine,
                std::unique_ptr<blockdev::BlockQueue> disk);

  // 5.2.6.1: a driver that cannot flush has what it wrote made durable before it is told.
  void use_features(u64 driver_features) override {
    is_written_through_ = (driver_features & kFeatureFlush) == 0;
  }
  bool can_begin() const override {
    return !free_slots_.empty() && in_flight_bytes_ < kMaxInFlightBytes;
  }
  BeginResult begin(const Chain& chain, ChainSink& sink) override;
  void poll() override { disk_->poll(); }
  void drain() override { disk_->drain(); }
  u32 in_flight_count() const override { return kSlotCount - static_cast<u32>(free_slots_.size()); }
  int completion_fd() const override { return disk_->completion_fd(); }

 private:
  struct Range {
    u64 offset_bytes;
    u64 length_bytes;
  };
  struct Slot : blockdev::BlockRequest {
    ChainSink* sink = nullptr;
    u16 head = 0;
    u64 writable_bytes = 0;  // of the chain; the last is the status
    u64 filled_bytes = 0;    // of them, from the front, if it succeeds
    Gpa status;
    u64 transfer_bytes = 0;  // read, write: what counts in in_flight_bytes_
    u32 range_count = 0;
    u32 range_next = 0;
    std::array<Range, kMaxRanges> ranges;  // what is left of them
    std::array<iovec, kMaxDataSegments> iovecs;
  };
  enum class Status : u8 { ok = 0, io_error = 1, unsupported = 2 };  // VIRTIO_BLK_S_*

  // Each fills the slot for the disk, or gives the answer at once.
  std::optional<Status> prepare(Slot& slot, const Chain& chain);
  std::optional<Status> prepare_read(Slot& slot, const Chain& chain, u64 sector);
  std::optional<Status> prepare_write(Slot& slot, const Chain& chain, u64 sector);
  std::optional<Status> prepare_flush(Slot& slot, const Chain& chain);
  std::optional<Status> prepare_ranges(Slot& slot, const Chain& chain, blockdev::BlockOp op);
  Status answer_id(Slot& slot, const Chain& chain);

  bool is_transfer(u64 sector, u64 length_bytes) const;
  void submit_next_piece(Slot& slot);
  void submit_flush(Slot& slot);
  void on_done(blockdev::BlockRequest& request, blockdev::BlockStatus status) override;
  void finish(Slot& slot, Status status);
  static u32 used_length(const Slot& slot, Status status);
  void hold(Slot& slot);
  void free(Slot& slot);

  const BlockLimits limits_;
  memory::GuestMemory& memory_;
  MachineEvents& machine_;
  std::unique_ptr<Slot[]> slots_;
  std::vector<Slot*> free_slots_;  // last in, first out: few slots stay warm
  u64 in_flight_bytes_ = 0;        // of reads and writes
  bool is_written_through_ = false;
  std::unique_ptr<blockdev::BlockQueue> disk_;
};

}  // namespace devices::virtio
