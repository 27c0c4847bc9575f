// The general guest, steered over the console: memory, disks and clock on command. Page numbers count
// from GUEST_ARENA, or from 4 GiB with 0x100000 added.
//
//   fill FIRST COUNT SEED       random words over whole pages         FILLED count
//   dirty COUNT [STRIDE] [SEED] one word a page, every STRIDE-th page  DIRTIED count
//   touch COUNT [STRIDE]        one read a page                        TOUCHED count
//   hash FIRST COUNT            of whole pages                         HASH value
//   disk-write D S N SEED       N sectors from S                       STATUS s
//   disk-check D S N SEED       ... hold what disk-write wrote         MATCH, or DIFFERS sector
//   disk-hash D S N                                                    HASH value
//   disk-flush D, disk-discard D S N, disk-zero D S N                  STATUS s
//   disk-info D                                                        SECTORS n, FEATURES f
//   run COUNT                   dirties COUNT pages again and again, ROUND n every 100, until a
//                               character arrives
//   memory                                                             LOW bytes, HIGH bytes

#include "guests/console.h"
#include "guests/virtio_blk.h"

enum { MAXIMUM_DISKS = 4, BUFFER_SECTORS = 64 };

static struct Disk disks[MAXIMUM_DISKS];
static u8 disk_opened[MAXIMUM_DISKS];
static u64 buffer[BUFFER_SECTORS * SECTOR_BYTES / 8] __attribute__((aligned(4096)));

static u64 page_address(u64 page) { return GUEST_ARENA + page * 4096; }

static int pages_exist(u64 first, u64 count) {
  u64 high_first = (0x100000000ull - GUEST_ARENA) / 4096;
  u64 limit = (low_memory_end() - GUEST_ARENA) / 4096;
  if (first >= high_first) {
    limit = high_first + high_memory_bytes() / 4096;
  }
  if (first <= limit && count <= limit - first) {
    return 1;
  }
  put_pair("ERROR pages end at", limit);
  return 0;
}

static void command_fill(char* arguments) {
  u64 first = next_number(&arguments, 0);
  u64 count = next_number(&arguments, 1);
  u64 seed = next_number(&arguments, 1);
  if (!pages_exist(first, count)) {
    return;
  }
  for (u64 word = page_address(first); word < page_address(first + count); word += 8) {
    *(u64*)word = random_next(&seed);
  }
  put_pair("FILLED", count);
}

static void command_dirty(char* arguments) {
  u64 count = next_number(&arguments, 1);
  u64 stride = next_number(&arguments, 1);
  u64 seed = next_number(&arguments, read_tsc());
  if (!pages_exist(0, count * stride)) {
    return;
  }
  for (u64 page = 0; page < count; ++page) {
    *(volatile u64*)page_address(page * stride) = random_next(&seed);
  }
  put_pair("DIRTIED", count);
}

static void command_touch(char* arguments) {
  u64 count = next_number(&arguments, 1);
  u64 stride = next_number(&arguments, 1);
  if (!pages_exist(0, count * stride)) {
    return;
  }
  for (u64 page = 0; page < count; ++page) {
    (void)*(volatile u64*)page_address(page * stride);
  }
  put_pair("TOUCHED", count);
}

static void put_hash(u64 hash) {
  put_text("HASH ");
  put_hex(hash);
  put_char('\n');
}

static void command_hash(char* arguments) {
  u64 first = next_number(&arguments, 0);
  u64 count = next_number(&arguments, 1);
  if (pages_exist(first, count)) {
    put_hash(hash_memory(page_address(first), count * 4096));
  }
}

static struct Disk* disk_of(char** arguments) {
  u64 index = next_number(arguments, 0);
  if (index < MAXIMUM_DISKS) {
    if (!disk_opened[index]) {
      disk_opened[index] = (u8)disk_open(&disks[index], (u32)index);
    }
    if (disk_opened[index]) {
      return &disks[index];
    }
  }
  put_line("ERROR no such disk");
  return 0;
}

static void fill_sectors(u64 first, u64 count, u64 seed) {
  for (u64 sector = 0; sector < count; ++sector) {
    u64 state = seed ^ ((first + sector) * 0x9e3779b97f4a7c15);
    for (u64 word = 0; word < SECTOR_BYTES / 8; ++word) {
      buffer[sector * (SECTOR_BYTES / 8) + word] = random_next(&state);
    }
  }
}

static void command_disk_write(char* arguments) {
  struct Disk* disk = disk_of(&arguments);
  u64 first = next_number(&arguments, 0);
  u64 count = next_number(&arguments, 1);
  u64 seed = next_number(&arguments, 1);
  u8 status = BLOCK_OK;
  for (u64 done = 0; disk && done < count && status == BLOCK_OK; done += BUFFER_SECTORS) {
    u64 sectors = count - done < BUFFER_SECTORS ? count - done : BUFFER_SECTORS;
    fill_sectors(first + done, sectors, seed);
    status = disk_request(disk, BLOCK_OUT, first + done, buffer, (u32)(sectors * SECTOR_BYTES));
  }
  if (disk) {
    put_pair("STATUS", status);
  }
}

// Word by word against the pattern, so that the first wrong sector is named.
static void command_disk_check(char* arguments) {
  struct Disk* disk = disk_of(&arguments);
  u64 first = next_number(&arguments, 0);
  u64 count = next_number(&arguments, 1);
  u64 seed = next_number(&arguments, 1);
  for (u64 sector = first; disk && sector < first + count; ++sector) {
    fill_sectors(sector, 1, seed);
    u64* read = &buffer[SECTOR_BYTES / 8];
    u8 status = disk_request(disk, BLOCK_IN, sector, read, SECTOR_BYTES);
    if (status != BLOCK_OK) {
      put_pair("STATUS", status);
      return;
    }
    for (u64 word = 0; word < SECTOR_BYTES / 8; ++word) {
      if (read[word] != buffer[word]) {
        put_pair("DIFFERS", sector);
        return;
      }
    }
  }
  if (disk) {
    put_line("MATCH");
  }
}

static void command_disk_hash(char* arguments) {
  struct Disk* disk = disk_of(&arguments);
  u64 first = next_number(&arguments, 0);
  u64 count = next_number(&arguments, 1);
  u64 hash = 0;
  for (u64 done = 0; disk && done < count; done += BUFFER_SECTORS) {
    u64 sectors = count - done < BUFFER_SECTORS ? count - done : BUFFER_SECTORS;
    u32 bytes = (u32)(sectors * SECTOR_BYTES);
    u8 status = disk_request(disk, BLOCK_IN, first + done, buffer, bytes);
    if (status != BLOCK_OK) {
      put_pair("STATUS", status);
      return;
    }
    hash = hash * 31 + hash_memory((u64)buffer, bytes);
  }
  if (disk) {
    put_hash(hash);
  }
}

static void disk_segment(char* arguments, enum BlockRequestType type) {
  struct Disk* disk = disk_of(&arguments);
  struct BlockSegment* segment = (struct BlockSegment*)buffer;
  segment->sector = next_number(&arguments, 0);
  segment->sectors = (u32)next_number(&arguments, 1);
  segment->flags = 0;
  if (disk) {
    put_pair("STATUS", disk_request(disk, type, 0, segment, sizeof(*segment)));
  }
}
static void command_disk_discard(char* arguments) { disk_segment(arguments, BLOCK_DISCARD); }
static void command_disk_zero(char* arguments) { disk_segment(arguments, BLOCK_WRITE_ZEROES); }

static void command_disk_flush(char* arguments) {
  struct Disk* disk = disk_of(&arguments);
  if (disk) {
    put_pair("STATUS", disk_request(disk, BLOCK_FLUSH, 0, 0, 0));
  }
}

static void command_disk_info(char* arguments) {
  struct Disk* disk = disk_of(&arguments);
  if (disk) {
    put_pair("SECTORS", disk->sectors);
    put_pair("FEATURES", disk->features);
  }
}

static void command_run(char* arguments) {
  u64 count = next_number(&arguments, 16);
  if (!pages_exist(0, count)) {
    return;
  }
  for (u64 round = 0; !(round % 100 == 0 && char_waiting()); ++round) {
    for (u64 page = 0; page < count; ++page) {
      *(volatile u64*)page_address(page) = round;
    }
    if (round % 100 == 0) {
      put_pair("ROUND", round);
    }
  }
  put_line("STOPPED");
}

static void command_memory(char* arguments) {
  (void)arguments;
  put_pair("LOW", low_memory_end());
  put_pair("HIGH", high_memory_bytes());
}

static const struct Command commands[] = {
    {"fill", command_fill},
    {"dirty", command_dirty},
    {"touch", command_touch},
    {"hash", command_hash},
    {"disk-write", command_disk_write},
    {"disk-check", command_disk_check},
    {"disk-hash", command_disk_hash},
    {"disk-discard", command_disk_discard},
    {"disk-zero", command_disk_zero},
    {"disk-flush", command_disk_flush},
    {"disk-info", command_disk_info},
    {"run", command_run},
    {"memory", command_memory},
    {0, 0},
};

void guest_start(void) {
  if (high_memory_bytes()) {
    map_high_memory();
  }
  run_commands(commands);
}
