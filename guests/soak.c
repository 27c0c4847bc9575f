// For `quicksave soak`: changes memory, its own page tables and the first disk at random, round after
// round, and checks what it reads against what it remembers. READY, then one byte a round:
//   .  all was as it must be
//   T  a page was read through a mapping that its tables no longer hold
//   d  a block of the disk is not what was written last
//   e  the disk refused a request
// A round begins with the TSC, so that two runs from one snapshot do not do the same.

#include "guests/lib.h"
#include "guests/virtio_blk.h"

enum {
  ENTRIES = 512,
  ENTRY_FLAGS = 0x67,  // present, writable, user, accessed, dirty
  BLOCKS = 1024,
  BLOCK_SECTORS = 8,
  BLOCK_WORDS = BLOCK_SECTORS * SECTOR_BYTES / 8,
  MAXIMUM_PAGES_A_ROUND = 256,
  SWAPS_A_ROUND = 64,
};

#define WINDOW 0x4000000000ull  // PDPT entry 256
#define FRAMES (GUEST_ARENA + 0x100000ull)
#define FREE_PAGES (FRAMES + ENTRIES * 4096ull)

extern u64 boot_pdpt[512];

static u64 directory[ENTRIES] __attribute__((aligned(4096)));
static u64 table[ENTRIES] __attribute__((aligned(4096)));
static u64 block[BLOCK_WORDS] __attribute__((aligned(4096)));
// What the disk holds: the seed of each block, 0 where nothing was written.
static u64 written[BLOCKS];
static struct Disk disk;

static void build_window(void) {
  for (u64 page = 0; page < ENTRIES; ++page) {
    u64 frame = FRAMES + page * 4096;
    *(u64*)frame = frame;
    table[page] = frame | ENTRY_FLAGS;
  }
  directory[0] = (u64)table | ENTRY_FLAGS;
  boot_pdpt[(WINDOW >> 30) % ENTRIES] = (u64)directory | ENTRY_FLAGS;
  load_cr3(read_cr3());
}

static void dirty_memory(u64* seed) {
  u64 pages = (low_memory_end() - FREE_PAGES) / 4096;
  for (u64 count = random_next(seed) % MAXIMUM_PAGES_A_ROUND; count > 0; --count) {
    u64 place = FREE_PAGES + random_next(seed) % pages * 4096 + random_next(seed) % 512 * 8;
    *(volatile u64*)place = random_next(seed);
  }
}

static char check_window(void) {
  for (u64 page = 0; page < ENTRIES; ++page) {
    if (*(volatile u64*)(WINDOW + page * 4096) != (table[page] & ~0xfffull)) {
      return 'T';
    }
  }
  return '.';
}

static void rewrite_tables(u64* seed) {
  for (u64 swap = 0; swap < SWAPS_A_ROUND; ++swap) {
    u64 left = random_next(seed) % ENTRIES;
    u64 right = random_next(seed) % ENTRIES;
    u64 entry = table[left];
    table[left] = table[right];
    table[right] = entry;
  }
  load_cr3(read_cr3());
}

static int transfer(enum BlockRequestType type, u64 index) {
  return disk_request(&disk, type, index * BLOCK_SECTORS, block, sizeof(block)) == BLOCK_OK;
}

static char change_disk(u64* seed) {
  u64 index = random_next(seed) % BLOCKS;
  u64 value = random_next(seed) | 1;
  written[index] = value;
  for (u64 word = 0; word < BLOCK_WORDS; ++word) {
    block[word] = random_next(&value);
  }
  return transfer(BLOCK_OUT, index) ? '.' : 'e';
}

static char check_disk(u64* seed) {
  u64 index = random_next(seed) % BLOCKS;
  u64 value = written[index];
  if (!transfer(BLOCK_IN, index)) {
    return 'e';
  }
  for (u64 word = 0; word < BLOCK_WORDS; ++word) {
    if (block[word] != (written[index] ? random_next(&value) : 0)) {
      return 'd';
    }
  }
  return '.';
}

void guest_start(void) {
  expect_true(1, "a disk of 4 MiB", disk_open(&disk, 0) && disk.sectors >= BLOCKS * BLOCK_SECTORS);
  build_window();
  put_line(GUEST_READY_WORD);
  for (;;) {
    u64 seed = read_tsc();
    char found = '.';
    for (u32 look = 0; look < 4 && found == '.'; ++look) {
      found = check_disk(&seed);
    }
    dirty_memory(&seed);
    // Right before they change: a revert to anything earlier in the round shows in this round's byte.
    if (found == '.') {
      found = check_window();
    }
    rewrite_tables(&seed);
    for (u32 change = 0; change < 4 && found == '.'; ++change) {
      found = change_disk(&seed);
    }
    put_char(found);
  }
}
