// For benchmarks: waits for a byte, dirties pages, answers a byte. First one line "PAGES MAPPED": how
// many pages each 'd' dirties, and how many are mapped (read) beforehand. Answers READY. Then
//   d  dirties PAGES pages, answers '.'
//   p  goes on dirtying and answering '.' by itself, until the next byte
//   m  reads the MAPPED pages once more, answers '.'
//   n  takes a line: the new PAGES; answers '.'
//   s  says 's' by itself until the next byte, which is the next command. A snapshot taken in it has
//      a guest whose first act after a revert is heard; after any other command the guest is silent
//   q  powers off
// It never sleeps: what is measured is the VMM, not a wakeup.

#include "guests/lib.h"

static u64 pages;
static u64 mapped;

static void dirty(void) {
  static u64 round;
  ++round;
  for (u64 page = 0; page < pages; ++page) {
    *(volatile u64*)(GUEST_ARENA + page * 4096) = round;
  }
}

static void map_pages(void) {
  for (u64 page = 0; page < mapped; ++page) {
    (void)*(volatile u64*)(GUEST_ARENA + page * 4096);
  }
}

static void answer(void) { out8(PLATFORM_COM1, '.'); }

void guest_start(void) {
  char line[64];
  get_line(line, sizeof(line));
  char* rest = line;
  pages = number_of(next_word(&rest));
  mapped = number_of(next_word(&rest));
  u64 limit = (low_memory_end() - GUEST_ARENA) / 4096;
  expect_true(1, "pages fit into memory", pages <= limit && mapped <= limit);
  map_pages();
  put_line(GUEST_READY_WORD);
  for (;;) {
    switch (get_char()) {
      case 'd':
        dirty();
        answer();
        break;
      case 'p':
        while (!char_waiting()) {
          dirty();
          answer();
        }
        break;
      case 'm':
        map_pages();
        answer();
        break;
      case 'n':
        get_line(line, sizeof(line));
        pages = number_of(line);
        expect_true(1, "pages fit into memory", pages <= limit);
        answer();
        break;
      case 's':
        while (!char_waiting()) {
          put_char('s');
        }
        break;
      case 'q':
        guest_exit(0);
    }
  }
}
