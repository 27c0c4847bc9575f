// Abuses every virtio device: random values into every register, then rings full of garbage that is
// kicked again and again. Afterwards the device must still be one: a reset and a proper start work.
//
//   attack SEED ROUNDS   SURVIVED seed, or BROKEN slot
//   loop                 a chain that bites its own tail, then a proper start     as above
//
// The machine must answer by the device's status, never by ending the VM.

#include "guests/console.h"
#include "guests/virtio_blk.h"

static struct Queue queue;
static struct Disk disk;

static void attack_registers(u64 base, u64* seed) {
  for (u32 count = 0; count < 64; ++count) {
    u64 value = random_next(seed);
    u64 offset = random_next(seed) % 0x200;
    switch (random_next(seed) % 8) {
      case 0: mmio_write8(base + offset, (u8)value); break;
      case 1: mmio_write16(base + (offset & ~1ull), (u16)value); break;
      case 2: mmio_write64(base + (offset & ~7ull), value); break;
      case 3: (void)mmio_read8(base + offset); break;
      case 4: (void)mmio_read64(base + (offset & ~7ull)); break;
      default: mmio_write32(base + (offset & ~3ull), (u32)value); break;
    }
  }
}

// Mostly plausible, so that the device follows it for a while.
static u64 bad_address(u64* seed) {
  switch (random_next(seed) % 8) {
    case 0: return random_next(seed);
    case 1: return low_memory_end() - random_next(seed) % 64;
    case 2: return PLATFORM_VIRTIO_BASE;
    case 3: return ~0ull - random_next(seed) % 64;
    case 4: return (u64)&queue;
    default: return GUEST_ARENA + random_next(seed) % 65536;
  }
}

static void attack_queue(u64* seed) {
  for (u32 index = 0; index < QUEUE_ENTRIES; ++index) {
    struct Descriptor* descriptor = &queue.descriptors[index];
    descriptor->address = bad_address(seed);
    descriptor->bytes = random_next(seed) % 4 ? (u32)(random_next(seed) % 8192)
                                              : (u32)random_next(seed);
    descriptor->flags = (u16)(random_next(seed) % 8);
    descriptor->next = random_next(seed) % 4 ? (u16)(random_next(seed) % QUEUE_ENTRIES)
                                             : (u16)random_next(seed);
    queue.available.ring[index] = random_next(seed) % 4 ? (u16)(random_next(seed) % QUEUE_ENTRIES)
                                                        : (u16)random_next(seed);
  }
  queue.available.index = (u16)(queue.available.index + random_next(seed) % 20);
  queue.available.flags = (u16)random_next(seed);
  barrier();
  mmio_write32(disk.base + VIRTIO_QUEUE_NOTIFY,
               random_next(seed) % 4 ? 0 : (u32)random_next(seed));
}

static int starts(u64 base) {
  disk.base = base;
  disk.queue = &queue;
  return disk_start(&disk, VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX);
}

// A block device must also read again.
static int works(u64 base) {
  disk.base = base;
  disk.queue = &queue;
  if (!disk_start(&disk, VIRTIO_F_VERSION_1)) {
    return 0;
  }
  return mmio_read32(base + VIRTIO_DEVICE_ID) != VIRTIO_BLOCK_DEVICE ||
         disk_request(&disk, BLOCK_IN, 0, (void*)GUEST_ARENA, SECTOR_BYTES) == BLOCK_OK;
}

static int present(u64 base) {
  return mmio_read32(base + VIRTIO_MAGIC) == VIRTIO_MAGIC_VALUE &&
         mmio_read32(base + VIRTIO_DEVICE_ID) != 0;
}

static int every_device_works(void) {
  for (u32 slot = 0; slot < PLATFORM_VIRTIO_SLOTS; ++slot) {
    u64 base = virtio_slot(slot);
    if (present(base) && !works(base)) {
      put_pair("BROKEN", slot);
      return 0;
    }
  }
  return 1;
}

static void command_attack(char* arguments) {
  u64 first_seed = next_number(&arguments, 1);
  u64 rounds = next_number(&arguments, 20);
  u64 seed = first_seed;
  for (u32 slot = 0; slot < PLATFORM_VIRTIO_SLOTS; ++slot) {
    u64 base = virtio_slot(slot);
    if (!present(base)) {
      attack_registers(base, &seed);
      continue;
    }
    for (u64 round = 0; round < rounds; ++round) {
      attack_registers(base, &seed);
      if (starts(base)) {
        for (u32 kick = 0; kick < 8; ++kick) {
          attack_queue(&seed);
        }
      }
    }
  }
  if (every_device_works()) {
    put_pair("SURVIVED", first_seed);
  }
}

static void command_loop(char* arguments) {
  (void)arguments;
  for (u32 slot = 0; slot < PLATFORM_VIRTIO_SLOTS; ++slot) {
    u64 base = virtio_slot(slot);
    if (!present(base) || !starts(base)) {
      continue;
    }
    queue.descriptors[0] = (struct Descriptor){GUEST_ARENA, 16, DESCRIPTOR_NEXT, 1};
    queue.descriptors[1] = (struct Descriptor){GUEST_ARENA, 0, DESCRIPTOR_NEXT, 0};
    queue.available.ring[0] = 0;
    queue.available.index = 1;
    barrier();
    mmio_write32(base + VIRTIO_QUEUE_NOTIFY, 0);
  }
  if (every_device_works()) {
    put_pair("SURVIVED", 0);
  }
}

static const struct Command commands[] = {
    {"attack", command_attack},
    {"loop", command_loop},
    {0, 0},
};

void guest_start(void) { run_commands(commands); }
