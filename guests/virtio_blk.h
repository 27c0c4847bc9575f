// A small virtio-blk driver: modern virtio-mmio, one split virtqueue, one request at a time, polled.
//
// The pieces are open, so that a guest can build requests that no sane driver would send.

#ifndef GUESTS_VIRTIO_BLK_H_
#define GUESTS_VIRTIO_BLK_H_

#include "guests/lib.h"

// virtio 1.2, 4.2.2 "MMIO Device Register Layout".
enum VirtioRegister {
  VIRTIO_MAGIC = 0x000,
  VIRTIO_VERSION = 0x004,
  VIRTIO_DEVICE_ID = 0x008,
  VIRTIO_DEVICE_FEATURES = 0x010,
  VIRTIO_DEVICE_FEATURES_SELECT = 0x014,
  VIRTIO_DRIVER_FEATURES = 0x020,
  VIRTIO_DRIVER_FEATURES_SELECT = 0x024,
  VIRTIO_QUEUE_SELECT = 0x030,
  VIRTIO_QUEUE_SIZE_MAX = 0x034,
  VIRTIO_QUEUE_SIZE = 0x038,
  VIRTIO_QUEUE_READY = 0x044,
  VIRTIO_QUEUE_NOTIFY = 0x050,
  VIRTIO_INTERRUPT_STATUS = 0x060,
  VIRTIO_INTERRUPT_ACK = 0x064,
  VIRTIO_STATUS = 0x070,
  VIRTIO_QUEUE_DESCRIPTORS = 0x080,  // low, then high at +4
  VIRTIO_QUEUE_DRIVER = 0x090,
  VIRTIO_QUEUE_DEVICE = 0x0a0,
  VIRTIO_CONFIG_GENERATION = 0x0fc,
  VIRTIO_CONFIG = 0x100,
};

enum {
  VIRTIO_MAGIC_VALUE = 0x74726976,
  VIRTIO_BLOCK_DEVICE = 2,
  VIRTIO_STATUS_ACKNOWLEDGE = 1,
  VIRTIO_STATUS_DRIVER = 2,
  VIRTIO_STATUS_DRIVER_OK = 4,
  VIRTIO_STATUS_FEATURES_OK = 8,
  VIRTIO_STATUS_NEEDS_RESET = 64,
  DESCRIPTOR_NEXT = 1,
  DESCRIPTOR_WRITE = 2,
  DESCRIPTOR_INDIRECT = 4,
};

// virtio 1.2, 5.2.3 "Feature bits" and 6.
#define BLOCK_F_RO (1ull << 5)
#define BLOCK_F_FLUSH (1ull << 9)
#define BLOCK_F_MQ (1ull << 12)
#define BLOCK_F_DISCARD (1ull << 13)
#define BLOCK_F_WRITE_ZEROES (1ull << 14)
#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)

enum BlockRequestType {
  BLOCK_IN = 0,
  BLOCK_OUT = 1,
  BLOCK_FLUSH = 4,
  BLOCK_GET_ID = 8,
  BLOCK_DISCARD = 11,
  BLOCK_WRITE_ZEROES = 13,
};
enum BlockStatus {
  BLOCK_OK = 0,
  BLOCK_IOERR = 1,
  BLOCK_UNSUPPORTED = 2,
  BLOCK_NO_ANSWER = 0xfe,  // ours: the device did not answer in time, or gave up
};

enum { QUEUE_ENTRIES = 16, SECTOR_BYTES = 512 };

struct Descriptor {
  u64 address;
  u32 bytes;
  u16 flags;
  u16 next;
};
struct AvailableRing {
  u16 flags;
  u16 index;
  u16 ring[QUEUE_ENTRIES];
  u16 used_event;
};
struct UsedElement {
  u32 id;
  u32 bytes;
};
struct UsedRing {
  u16 flags;
  u16 index;
  struct UsedElement ring[QUEUE_ENTRIES];
  u16 available_event;
};
struct Queue {
  struct Descriptor descriptors[QUEUE_ENTRIES];
  struct AvailableRing available;
  struct UsedRing used __attribute__((aligned(4)));
} __attribute__((aligned(4096)));

struct BlockHeader {
  u32 type;
  u32 reserved;
  u64 sector;
};
// virtio 1.2, 5.2.6: payload of discard and write zeroes.
struct BlockSegment {
  u64 sector;
  u32 sectors;
  u32 flags;
};

struct Disk {
  u64 base;
  u64 sectors;
  u64 features;  // accepted
  struct Queue* queue;
  u16 used_seen;
  struct BlockHeader header;
  u8 status;
};

// The base address of slot `slot`, 0 if there is no such slot; works on QEMU's microvm too.
u64 virtio_slot(u32 slot);
// The base address of the `index`-th block device, 0 if there are fewer.
u64 find_block_device(u32 index);

// Resets and starts the device with those of `wanted` that it offers. `disk->base` and `disk->queue`
// are set. Returns 0 if the device refused.
int disk_start(struct Disk* disk, u64 wanted);
// One call for the usual: finds, allocates, starts.
int disk_open(struct Disk* disk, u32 index);

// Publishes the chain at `head` and waits for it; returns the used length, or -1 without an answer.
long disk_submit(struct Disk* disk, u16 head);
// One request with one data buffer (none if `bytes` is 0); returns the status byte.
u8 disk_request(struct Disk* disk, enum BlockRequestType type, u64 sector, void* data, u32 bytes);

#endif  // GUESTS_VIRTIO_BLK_H_
