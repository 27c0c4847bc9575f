// Block: virtio-blk (virtio 1.2, 5.2 "Block Device") over a BlockBackend: one BlockQueue for each
// virtqueue, opened at construction.
//
// Accepted chains: a readable part of 16 bytes of header and, for writes and discards, the data;
// then a writable part of the data, for reads, and one byte of status at its very end. How the
// parts are split over descriptors does not matter (2.7.4.3 "Message Framing").
//
// Thread: constant after create(), except the queues.

#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "blockdev/block_backend.h"
#include "devices/device.h"
#include "devices/virtio/handler.h"
#include "vmm/base/wire.h"
#include "vmm/memory/guest_memory.h"

namespace devices::virtio {

inline constexpr u64 kFeatureFlush = u64{1} << 9;  // VIRTIO_BLK_F_FLUSH

// What happens to a request when the disk's host file system is full.
enum class OnNoSpace : u8 {
  pause,  // the request waits and the machine is told to pause; resume() tries again
  error,  // the guest gets an I/O error
};

struct BlockOptions {
  std::string name{};    // for messages: the disk's name
  std::string serial{};  // what GET_ID answers; cut to 20 bytes
  u32 queue_count = 1;
  OnNoSpace on_no_space = OnNoSpace::pause;
};

// virtio 1.2, 5.2.4 "Device configuration layout"
struct BlockConfig {
  le64 capacity;                  //  0  sectors of 512 bytes
  le32 size_max;                  //  8  VIRTIO_BLK_F_SIZE_MAX
  le32 seg_max;                   // 12  VIRTIO_BLK_F_SEG_MAX
  le16 cylinders;                 // 16  VIRTIO_BLK_F_GEOMETRY: not offered
  u8 heads = 0;                   // 18
  u8 sectors = 0;                 // 19
  le32 blk_size;                  // 20  VIRTIO_BLK_F_BLK_SIZE
  u8 physical_block_exp = 0;      // 24  VIRTIO_BLK_F_TOPOLOGY
  u8 alignment_offset = 0;        // 25
  le16 min_io_size;               // 26  blocks
  le32 opt_io_size;               // 28  blocks
  u8 writeback = 0;               // 32  VIRTIO_BLK_F_CONFIG_WCE: not offered
  u8 unused0 = 0;                 // 33
  le16 num_queues;                // 34  VIRTIO_BLK_F_MQ
  le32 max_discard_sectors;       // 36  VIRTIO_BLK_F_DISCARD
  le32 max_discard_seg;           // 40
  le32 discard_sector_alignment;  // 44
  le32 max_write_zeroes_sectors;  // 48  VIRTIO_BLK_F_WRITE_ZEROES
  le32 max_write_zeroes_seg;      // 52
  u8 write_zeroes_may_unmap = 0;  // 56
  u8 unused1[3] = {};             // 57
};
static_assert(base::WireType<BlockConfig> && sizeof(BlockConfig) == 60);

class Block final : public DeviceType {
 public:
  // `backend`, `memory` and `machine` outlive the device.
  static Result<std::unique_ptr<Block>> create(memory::GuestMemory& memory,
                                               blockdev::BlockBackend& backend,
                                               MachineEvents& machine, BlockOptions options);
  ~Block() override;

  u32 device_id() const override { return 2; }
  u64 device_features() const override { return features_; }
  std::span<const u8> config_space() const override;
  u32 queue_count() const override { return static_cast<u32>(queues_.size()); }
  QueueHandler& queue_handler(u32 index) override;

 private:
  Block(blockdev::BlockBackend& backend, u32 queue_count);

  u64 features_ = 0;
  BlockConfig config_;
  std::vector<std::unique_ptr<QueueHandler>> queues_;
};

}  // namespace devices::virtio
