// Writes patterns over memory and reads them back: every page its own address, then random words,
// then each inverted. 1: a word differs, with the step in the line above.

#include "guests/lib.h"

static void check_range(u64 start, u64 end) {
  for (u64 page = start; page < end; page += 4096) {
    *(u64*)page = page;
    *(u64*)(page + 4088) = ~page;
  }
  for (u64 page = start; page < end; page += 4096) {
    expect_equal(1, "address", *(u64*)page, page);
    expect_equal(1, "inverted address", *(u64*)(page + 4088), ~page);
  }
  u64 seed = 1;
  for (u64 word = start; word < end; word += 8) {
    *(u64*)word = random_next(&seed);
  }
  seed = 1;
  for (u64 word = start; word < end; word += 8) {
    u64 value = random_next(&seed);
    expect_equal(1, "random word", *(u64*)word, value);
    *(u64*)word = ~value;
  }
  seed = 1;
  for (u64 word = start; word < end; word += 8) {
    expect_equal(1, "inverted word", *(u64*)word, ~random_next(&seed));
  }
}

void guest_start(void) {
  put_pair("low", low_memory_end());
  put_pair("high", high_memory_bytes());
  u64 end = low_memory_end();
  u64 limit = GUEST_ARENA + (16ull << 20);
  check_range(GUEST_ARENA, end < limit ? end : limit);
  check_range(end - (1 << 20), end);
  if (high_memory_bytes()) {
    map_high_memory();
    check_range(0x100000000ull, 0x100000000ull + (1 << 20));
    // Up to 8 GiB is mapped.
    u64 high = high_memory_bytes() < (4ull << 30) ? high_memory_bytes() : (4ull << 30);
    check_range(0x100000000ull + high - (1 << 20), 0x100000000ull + high);
  }
  guest_exit(0);
}
