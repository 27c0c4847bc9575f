// Reads, writes and flushes the first disk through its virtqueue and checks every byte. By itself:
// DISK sectors, then GUEST-EXIT.
//
// Failures: 1 no disk, 2 a write, 3 a flush, 4 a read, 5 wrong data, 6 the ID, 7 discard or write
// zeroes, 8 data after write zeroes.

#include "guests/virtio_blk.h"

enum { BATCH_SECTORS = 64, BATCHES = 16 };

static u64 data[BATCH_SECTORS * SECTOR_BYTES / 8] __attribute__((aligned(4096)));

static void fill(u64 batch, u64 seed) {
  u64 state = seed + batch;
  for (u32 word = 0; word < sizeof(data) / 8; ++word) {
    data[word] = random_next(&state);
  }
}

static void check(u64 batch, u64 seed) {
  u64 state = seed + batch;
  for (u32 word = 0; word < sizeof(data) / 8; ++word) {
    expect_equal(5, "data", data[word], random_next(&state));
  }
}

// Spread over the disk, last sector included.
static u64 sector_of(const struct Disk* disk, u64 batch) {
  return (disk->sectors - BATCH_SECTORS) * batch / (BATCHES - 1);
}

void guest_start(void) {
  static struct Disk disk;
  expect_true(1, "a disk", disk_open(&disk, 0) && disk.sectors >= BATCH_SECTORS * BATCHES);
  put_pair("DISK", disk.sectors);
  for (u64 seed = 1; seed <= 2; ++seed) {  // the second pass overwrites
    for (u64 batch = 0; batch < BATCHES; ++batch) {
      fill(batch, seed * 1000);
      expect_equal(2, "write", disk_request(&disk, BLOCK_OUT, sector_of(&disk, batch), data,
                                            sizeof(data)), BLOCK_OK);
    }
    expect_equal(3, "flush", disk_request(&disk, BLOCK_FLUSH, 0, 0, 0), BLOCK_OK);
    for (u64 batch = 0; batch < BATCHES; ++batch) {
      memset(data, 0, sizeof(data));
      expect_equal(4, "read", disk_request(&disk, BLOCK_IN, sector_of(&disk, batch), data,
                                           sizeof(data)), BLOCK_OK);
      check(batch, seed * 1000);
    }
  }
  expect_equal(6, "get id", disk_request(&disk, BLOCK_GET_ID, 0, data, 20), BLOCK_OK);
  struct BlockSegment* segment = (struct BlockSegment*)data;
  if (disk.features & BLOCK_F_WRITE_ZEROES) {
    *segment = (struct BlockSegment){sector_of(&disk, 1) + 3, 9, 0};
    expect_equal(7, "write zeroes", disk_request(&disk, BLOCK_WRITE_ZEROES, 0, segment,
                                                 sizeof(*segment)), BLOCK_OK);
    expect_equal(4, "read", disk_request(&disk, BLOCK_IN, sector_of(&disk, 1) + 3, data,
                                         9 * SECTOR_BYTES), BLOCK_OK);
    for (u32 word = 0; word < 9 * SECTOR_BYTES / 8; ++word) {
      expect_equal(8, "zeroes", data[word], 0);
    }
  }
  if (disk.features & BLOCK_F_DISCARD) {
    *segment = (struct BlockSegment){sector_of(&disk, 2), 8, 0};
    expect_equal(7, "discard", disk_request(&disk, BLOCK_DISCARD, 0, segment, sizeof(*segment)),
                 BLOCK_OK);
  }
  guest_exit(0);
}
