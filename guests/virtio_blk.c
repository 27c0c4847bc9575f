#include "guests/virtio_blk.h"

enum { MAXIMUM_DISKS = 4, ANSWER_POLLS = 2000000 };

static struct Queue queues[MAXIMUM_DISKS];

static u32 read_register(const struct Disk* disk, enum VirtioRegister offset) {
  return mmio_read32(disk->base + (u64)offset);
}
static void write_register(const struct Disk* disk, enum VirtioRegister offset, u32 value) {
  mmio_write32(disk->base + (u64)offset, value);
}
static void write_address(const struct Disk* disk, enum VirtioRegister offset, const void* address) {
  mmio_write32(disk->base + (u64)offset, (u32)(u64)address);
  mmio_write32(disk->base + (u64)offset + 4, (u32)((u64)address >> 32));
}

u64 virtio_slot(u32 slot) {
  u64 ours = PLATFORM_VIRTIO_BASE + (u64)slot * PLATFORM_VIRTIO_STRIDE;
  if (slot >= PLATFORM_VIRTIO_SLOTS) {
    return 0;
  }
  if (mmio_read32(PLATFORM_VIRTIO_BASE) == VIRTIO_MAGIC_VALUE) {
    return ours;
  }
  // microvm fills its transports from the last one down.
  u64 microvm = MICROVM_VIRTIO_BASE + (u64)slot * MICROVM_VIRTIO_STRIDE;
  return mmio_read32(microvm) == VIRTIO_MAGIC_VALUE ? microvm : ours;
}

u64 find_block_device(u32 index) {
  for (u32 slot = 0; slot < PLATFORM_VIRTIO_SLOTS; ++slot) {
    u64 base = virtio_slot(slot);
    if (mmio_read32(base + VIRTIO_MAGIC) == VIRTIO_MAGIC_VALUE &&
        mmio_read32(base + VIRTIO_VERSION) == 2 &&
        mmio_read32(base + VIRTIO_DEVICE_ID) == VIRTIO_BLOCK_DEVICE && index-- == 0) {
      return base;
    }
  }
  return 0;
}

// virtio 1.2, 3.1.1 "Driver Requirements: Device Initialization".
int disk_start(struct Disk* disk, u64 wanted) {
  write_register(disk, VIRTIO_STATUS, 0);
  write_register(disk, VIRTIO_STATUS, VIRTIO_STATUS_ACKNOWLEDGE);
  write_register(disk, VIRTIO_STATUS, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
  disk->features = 0;
  for (u32 half = 0; half < 2; ++half) {
    write_register(disk, VIRTIO_DEVICE_FEATURES_SELECT, half);
    u32 accepted = read_register(disk, VIRTIO_DEVICE_FEATURES) & (u32)(wanted >> (32 * half));
    write_register(disk, VIRTIO_DRIVER_FEATURES_SELECT, half);
    write_register(disk, VIRTIO_DRIVER_FEATURES, accepted);
    disk->features |= (u64)accepted << (32 * half);
  }
  u32 status = VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK;
  write_register(disk, VIRTIO_STATUS, status);
  if (!(read_register(disk, VIRTIO_STATUS) & VIRTIO_STATUS_FEATURES_OK)) {
    return 0;
  }
  memset(disk->queue, 0, sizeof(*disk->queue));
  disk->used_seen = 0;
  write_register(disk, VIRTIO_QUEUE_SELECT, 0);
  write_register(disk, VIRTIO_QUEUE_SIZE, QUEUE_ENTRIES);
  write_address(disk, VIRTIO_QUEUE_DESCRIPTORS, disk->queue->descriptors);
  write_address(disk, VIRTIO_QUEUE_DRIVER, &disk->queue->available);
  write_address(disk, VIRTIO_QUEUE_DEVICE, &disk->queue->used);
  write_register(disk, VIRTIO_QUEUE_READY, 1);
  write_register(disk, VIRTIO_STATUS, status | VIRTIO_STATUS_DRIVER_OK);
  disk->sectors = read_register(disk, VIRTIO_CONFIG) |
                  ((u64)mmio_read32(disk->base + VIRTIO_CONFIG + 4) << 32);
  return !(read_register(disk, VIRTIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
}

int disk_open(struct Disk* disk, u32 index) {
  if (index >= MAXIMUM_DISKS) {
    return 0;
  }
  disk->base = find_block_device(index);
  disk->queue = &queues[index];
  return disk->base && disk_start(disk, VIRTIO_F_VERSION_1 | BLOCK_F_RO | BLOCK_F_FLUSH |
                                            BLOCK_F_DISCARD | BLOCK_F_WRITE_ZEROES |
                                            VIRTIO_F_INDIRECT_DESC);
}

long disk_submit(struct Disk* disk, u16 head) {
  struct Queue* queue = disk->queue;
  volatile u16* used_index = &queue->used.index;
  queue->available.ring[queue->available.index % QUEUE_ENTRIES] = head;
  barrier();
  ++queue->available.index;
  barrier();
  write_register(disk, VIRTIO_QUEUE_NOTIFY, 0);
  for (u32 poll = 0; *used_index == disk->used_seen; ++poll) {
    // Looking at the device costs an exit: rarely.
    if (poll % 65536 == 65535 &&
        (poll >= ANSWER_POLLS * 64u ||
         (read_register(disk, VIRTIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET))) {
      return -1;
    }
    pause();
  }
  barrier();
  struct UsedElement element = queue->used.ring[disk->used_seen++ % QUEUE_ENTRIES];
  write_register(disk, VIRTIO_INTERRUPT_ACK, read_register(disk, VIRTIO_INTERRUPT_STATUS));
  return element.id == head ? (long)element.bytes : -1;
}

u8 disk_request(struct Disk* disk, enum BlockRequestType type, u64 sector, void* data, u32 bytes) {
  struct Descriptor* descriptors = disk->queue->descriptors;
  int from_device = type == BLOCK_IN || type == BLOCK_GET_ID;
  disk->header = (struct BlockHeader){.type = (u32)type, .sector = sector};
  disk->status = BLOCK_NO_ANSWER;
  u16 last = bytes ? 2 : 1;
  descriptors[0] =
      (struct Descriptor){(u64)&disk->header, sizeof(disk->header), DESCRIPTOR_NEXT, 1};
  descriptors[1] = (struct Descriptor){
      (u64)data, bytes, (u16)(DESCRIPTOR_NEXT | (from_device ? DESCRIPTOR_WRITE : 0)), 2};
  descriptors[last] = (struct Descriptor){(u64)&disk->status, 1, DESCRIPTOR_WRITE, 0};
  return disk_submit(disk, 0) < 0 ? (u8)BLOCK_NO_ANSWER : *(volatile u8*)&disk->status;
}
