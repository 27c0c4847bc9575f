#include "devices/virtio/block.h"

#include <algorithm>

#include "devices/virtio/block_requests.h"
#include "vmm/base/check.h"

namespace devices::virtio {
namespace {

// virtio 1.2, 5.2.3 "Feature bits"
namespace feature {
constexpr u64 kSizeMax = u64{1} << 1;       // VIRTIO_BLK_F_SIZE_MAX
constexpr u64 kSegMax = u64{1} << 2;        // VIRTIO_BLK_F_SEG_MAX
constexpr u64 kReadOnly = u64{1} << 5;      // VIRTIO_BLK_F_RO
constexpr u64 kBlkSize = u64{1} << 6;       // VIRTIO_BLK_F_BLK_SIZE
constexpr u64 kTopology = u64{1} << 10;     // VIRTIO_BLK_F_TOPOLOGY
constexpr u64 kMultiQueue = u64{1} << 12;   // VIRTIO_BLK_F_MQ
constexpr u64 kDiscard = u64{1} << 13;      // VIRTIO_BLK_F_DISCARD
constexpr u64 kWriteZeroes = u64{1} << 14;  // VIRTIO_BLK_F_WRITE_ZEROES
}  // namespace feature

u64 features_of(const blockdev::BlockBackend& backend, u32 queue_count) {
  using namespace feature;
  u64 features = kSizeMax | kSegMax | kBlkSize | kFeatureFlush | kTopology;
  features |= backend.is_read_only() ? kReadOnly : kDiscard | kWriteZeroes;
  if (queue_count > 1) features |= kMultiQueue;
  return features;
}

BlockConfig config_of(const blockdev::BlockBackend& backend, u32 queue_count) {
  // 4 KiB is what the layers below store; a guest that keeps to it is never read-modify-written.
  constexpr u8 kPhysicalBlockExponent = 3;
  BlockConfig config;
  config.capacity = backend.size_bytes() / blockdev::kSectorBytes;
  config.size_max = kMaxSegmentBytes;
  config.seg_max = kMaxDataSegments;
  config.blk_size = blockdev::kSectorBytes;
  config.physical_block_exp = kPhysicalBlockExponent;
  config.min_io_size = u16{1} << kPhysicalBlockExponent;
  config.num_queues = static_cast<u16>(queue_count);
  if (backend.is_read_only()) return config;
  config.max_discard_sectors = kMaxRangeSectors;
  config.max_discard_seg = kMaxRanges;
  config.discard_sector_alignment =
      std::max(backend.discard_granularity_bytes() / blockdev::kSectorBytes, u32{1});
  config.max_write_zeroes_sectors = kMaxRangeSectors;
  config.max_write_zeroes_seg = kMaxRanges;
  config.write_zeroes_may_unmap = 1;
  return config;
}

}  // namespace

Result<std::unique_ptr<Block>> Block::create(memory::GuestMemory& memory,
                                             blockdev::BlockBackend& backend,
                                             MachineEvents& machine, BlockOptions options) {
  CHECK(options.queue_count != 0);
  BlockLimits limits;
  limits.name = options.name;
  limits.capacity_bytes = backend.size_bytes();
  limits.is_read_only = backend.is_read_only();
  limits.on_no_space = options.on_no_space;
  std::copy_n(options.serial.begin(), std::min(options.serial.size(), limits.serial.size()),
              limits.serial.begin());

  std::unique_ptr<Block> block(new Block(backend, options.queue_count));
  for (u32 index = 0; index < options.queue_count; ++index) {
    std::unique_ptr<blockdev::BlockQueue> queue = TRY_CONTEXT(
        backend.open_queue(), fmt::format("open queue {} of disk \"{}\"", index, options.name));
    block->queues_.push_back(
        std::make_unique<BlockRequests>(limits, memory, machine, std::move(queue)));
  }
  return block;
}

Block::Block(blockdev::BlockBackend& backend, u32 queue_count)
    : features_(features_of(backend, queue_count)), config_(config_of(backend, queue_count)) {}

Block::~Block() = default;

std::span<const u8> Block::config_space() const {
  return {reinterpret_cast<const u8*>(&config_), sizeof config_};
}

QueueHandler& Block::queue_handler(u32 index) { return *queues_[index]; }

}  // namespace devices::virtio
