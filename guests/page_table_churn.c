// Rewrites its own page tables all the time and reads its memory through them. A window of 2048 pages
// is mapped through four page tables that the guest permutes; every physical page holds its own
// number, so a stale translation shows as a wrong number.
//
//   churn SEED    another permutation of pages and of page tables, a TLB flush, then as verify
//   verify        reads the whole window, nothing flushed:  FRESH hash, or STALE count first-page
//   run           churns with new seeds until a character arrives; ROUND n every 16, STALE as above
//
// After a revert `verify` must come before anything that flushes: the tables in memory are the old
// ones again, and what the window shows must agree with them.

#include "guests/console.h"

enum {
  TABLES = 4,
  ENTRIES = 512,
  WINDOW_PAGES = TABLES * ENTRIES,
  ENTRY_FLAGS = 0x67,  // present, writable, user, accessed, dirty
  ROUNDS_A_LINE = 16,
};

#define WINDOW 0x4000000000ull  // PDPT entry 256
#define FRAMES (GUEST_ARENA + 0x100000ull)

extern u64 boot_pdpt[512];

static u64 directory[ENTRIES] __attribute__((aligned(4096)));
static u64 tables[TABLES][ENTRIES] __attribute__((aligned(4096)));

static void swap(u64* left, u64* right) {
  u64 value = *left;
  *left = *right;
  *right = value;
}

static void rewrite_tables(u64 seed) {
  for (u64 entry = WINDOW_PAGES - 1; entry > 0; --entry) {
    u64 other = random_next(&seed) % (entry + 1);
    swap(&tables[entry / ENTRIES][entry % ENTRIES], &tables[other / ENTRIES][other % ENTRIES]);
  }
  for (u64 entry = TABLES - 1; entry > 0; --entry) {
    swap(&directory[entry], &directory[random_next(&seed) % (entry + 1)]);
  }
}

// What the tables in memory say the page must hold, by the same walk as the processor's.
static u64 expected_frame(u64 page) {
  const u64* table = (const u64*)(directory[page / ENTRIES] & ~0xfffull);
  return (table[page % ENTRIES] & ~0xfffull) / 4096;
}

static int verify(void) {
  u64 stale = 0;
  u64 first = 0;
  u64 hash = 0;
  for (u64 page = 0; page < WINDOW_PAGES; ++page) {
    u64 frame = *(volatile u64*)(WINDOW + page * 4096);
    hash = (hash ^ frame) * 0x9e3779b97f4a7c15;
    if (frame != expected_frame(page) && stale++ == 0) {
      first = page;
    }
  }
  if (stale) {
    put_text("STALE ");
    put_number(stale);
    put_pair(" first", first);
    return 0;
  }
  put_text("FRESH ");
  put_hex(hash);
  put_char('\n');
  return 1;
}

static void command_verify(char* arguments) {
  (void)arguments;
  verify();
}

static void command_churn(char* arguments) {
  rewrite_tables(next_number(&arguments, read_tsc()));
  load_cr3(read_cr3());
  verify();
}

static void command_run(char* arguments) {
  u64 seed = next_number(&arguments, 1);
  for (u64 round = 0; !char_waiting(); ++round) {
    rewrite_tables(random_next(&seed));
    load_cr3(read_cr3());
    u64 stale = 0;
    for (u64 page = 0; page < WINDOW_PAGES; ++page) {
      stale += *(volatile u64*)(WINDOW + page * 4096) != expected_frame(page);
    }
    if (stale) {
      put_pair("STALE", stale);
    }
    if (round % ROUNDS_A_LINE == 0) {
      put_pair("ROUND", round);
    }
  }
  put_line("STOPPED");
}

static const struct Command commands[] = {
    {"churn", command_churn},
    {"verify", command_verify},
    {"run", command_run},
    {0, 0},
};

void guest_start(void) {
  for (u64 page = 0; page < WINDOW_PAGES; ++page) {
    u64 frame = FRAMES + page * 4096;
    *(u64*)frame = frame / 4096;
    tables[page / ENTRIES][page % ENTRIES] = frame | ENTRY_FLAGS;
  }
  for (u64 table = 0; table < TABLES; ++table) {
    directory[table] = (u64)tables[table] | ENTRY_FLAGS;
  }
  boot_pdpt[(WINDOW >> 30) % ENTRIES] = (u64)directory | ENTRY_FLAGS;
  load_cr3(read_cr3());
  run_commands(commands);
}
