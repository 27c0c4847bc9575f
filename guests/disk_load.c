// For `quicksave bench image`: keeps so many requests of 4 KiB in flight on the first disk. READY,
// and once more for each empty line, so that who comes late hears it; then for each line
//
//   read|write COUNT DEPTH STEP FIRST BLOCKS
//
// COUNT requests, DEPTH at a time: the first one at block FIRST, each other one STEP blocks behind
// the one before, and around within BLOCKS blocks from FIRST on. COUNT 0: until a line arrives.
// The answer, with microseconds in all, kicks, and nanoseconds from putting a request into the ring
// to seeing its answer:
//
//   DONE requests microseconds kicks median 99th-percentile longest
//
// What is measured is the device. So the driver does what a good one does, and no more: it looks at
// the used ring instead of sleeping, asks for no interrupts (where KVM has no hardware to help, their
// handlers are emulated), and kicks only when the device asks for it.
//
// Failures: 1 no disk, 2 a request failed, 3 a line that makes no sense.

#include "guests/interrupts.h"
#include "guests/virtio_blk.h"

enum {
  MAXIMUM_DEPTH = 32,
  CHAIN = 3,  // header, data, status
  ENTRIES = 128,
  BLOCK_BYTES = 4096,
  BLOCK_SECTORS = BLOCK_BYTES / SECTOR_BYTES,
  REQUESTS_A_LOOK = 1024,      // asking the serial line is an exit
  POLLS_A_LOOK = 1 << 24,      // so is asking the device whether it gave up
  STEPS_AN_OCTAVE = 32,
  BUCKETS = 64 * STEPS_AN_OCTAVE,
  SCALE_BITS = 20,  // nanoseconds in a tick, as a fraction; good for 2^44 ns, which are four hours
};
_Static_assert(MAXIMUM_DEPTH * CHAIN <= ENTRIES, "all requests fit into the ring");

// Larger than virtio_blk.h's, which holds one request.
struct LoadQueue {
  struct Descriptor descriptors[ENTRIES];
  struct {
    u16 flags;
    u16 index;
    u16 ring[ENTRIES];
    u16 used_event;
  } available;
  struct {
    u16 flags;
    u16 index;
    struct UsedElement ring[ENTRIES];
    u16 available_event;
  } used __attribute__((aligned(4)));
} __attribute__((aligned(4096)));

struct Slot {
  struct BlockHeader header;
  u8 status;
  u64 started;  // TSC
};

struct Load {
  enum BlockRequestType type;
  u64 count;  // 0: until a line arrives
  u64 depth;
  u64 step;
  u64 first;
  u64 blocks;
  // Where it is.
  u64 next;  // within `blocks`
  u64 sent;
  u64 done;
  u64 kicks;
  int stopped;
};

static u64 base;
static u64 disk_blocks;
static volatile struct LoadQueue queue;
static volatile struct Slot slots[MAXIMUM_DEPTH];
static u8 data[MAXIMUM_DEPTH][BLOCK_BYTES] __attribute__((aligned(4096)));
static u16 available_index;  // of the requests in the ring, the last ones not shown yet
static u16 shown_index;
static u16 used_seen;
// How many requests took how many ticks: 32 buckets to each doubling, so 3 % wide.
static u32 latencies[BUCKETS];

static u32 read_register(enum VirtioRegister offset) { return mmio_read32(base + (u64)offset); }
static void write_register(enum VirtioRegister offset, u32 value) {
  mmio_write32(base + (u64)offset, value);
}
static void write_address(enum VirtioRegister offset, volatile void* address) {
  mmio_write32(base + (u64)offset, (u32)(u64)address);
  mmio_write32(base + (u64)offset + 4, (u32)((u64)address >> 32));
}

// As disk_start(), with a ring of its own.
static int start_device(void) {
  const u64 wanted = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX;
  u32 status = VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER;
  write_register(VIRTIO_STATUS, 0);
  write_register(VIRTIO_STATUS, VIRTIO_STATUS_ACKNOWLEDGE);
  write_register(VIRTIO_STATUS, status);
  for (u32 half = 0; half < 2; ++half) {
    u32 asked = (u32)(wanted >> (32 * half));
    write_register(VIRTIO_DEVICE_FEATURES_SELECT, half);
    if ((read_register(VIRTIO_DEVICE_FEATURES) & asked) != asked) {
      return 0;
    }
    write_register(VIRTIO_DRIVER_FEATURES_SELECT, half);
    write_register(VIRTIO_DRIVER_FEATURES, asked);
  }
  status |= VIRTIO_STATUS_FEATURES_OK;
  write_register(VIRTIO_STATUS, status);
  write_register(VIRTIO_QUEUE_SELECT, 0);
  write_register(VIRTIO_QUEUE_SIZE, ENTRIES);
  write_address(VIRTIO_QUEUE_DESCRIPTORS, queue.descriptors);
  write_address(VIRTIO_QUEUE_DRIVER, &queue.available);
  write_address(VIRTIO_QUEUE_DEVICE, &queue.used);
  write_register(VIRTIO_QUEUE_READY, 1);
  status |= VIRTIO_STATUS_DRIVER_OK;
  write_register(VIRTIO_STATUS, status);
  disk_blocks = (read_register(VIRTIO_CONFIG) | ((u64)mmio_read32(base + VIRTIO_CONFIG + 4) << 32)) /
                BLOCK_SECTORS;
  return read_register(VIRTIO_STATUS) == status;
}

static void build_chains(enum BlockRequestType type) {
  for (u16 slot = 0; slot < MAXIMUM_DEPTH; ++slot) {
    u16 head = (u16)(slot * CHAIN);
    u16 direction = type == BLOCK_IN ? DESCRIPTOR_WRITE : 0;
    slots[slot].header.type = (u32)type;
    queue.descriptors[head] = (struct Descriptor){
        (u64)&slots[slot].header, sizeof(struct BlockHeader), DESCRIPTOR_NEXT, (u16)(head + 1)};
    queue.descriptors[head + 1] = (struct Descriptor){
        (u64)data[slot], BLOCK_BYTES, (u16)(DESCRIPTOR_NEXT | direction), (u16)(head + 2)};
    queue.descriptors[head + 2] =
        (struct Descriptor){(u64)&slots[slot].status, 1, DESCRIPTOR_WRITE, 0};
  }
}

static int wants_more(struct Load* load) {
  if (load->count) {
    return load->sent < load->count;
  }
  if (!load->stopped && load->sent && load->sent % REQUESTS_A_LOOK == 0 && char_waiting()) {
    load->stopped = 1;
  }
  return !load->stopped;
}

static void put(struct Load* load, u16 slot, u64 now) {
  slots[slot].header.sector = (load->first + load->next) * BLOCK_SECTORS;
  slots[slot].status = BLOCK_NO_ANSWER;
  slots[slot].started = now;
  load->next = (load->next + load->step) % load->blocks;
  ++load->sent;
  queue.available.ring[available_index++ % ENTRIES] = (u16)(slot * CHAIN);
}

static void show(struct Load* load) {
  if (available_index == shown_index) {
    return;
  }
  u16 before = shown_index;
  shown_index = available_index;
  // Half of all numbers ahead: no interrupt.
  queue.available.used_event = (u16)(used_seen + 0x8000);
  barrier();
  queue.available.index = available_index;
  // Full: the device stores where it sleeps and looks at our index, we the other way round.
  barrier();
  // virtio 1.2, 2.7.10 "Available Buffer Notification Suppression".
  u16 event = queue.used.available_event;
  if ((u16)(available_index - event - 1) < (u16)(available_index - before)) {
    write_register(VIRTIO_QUEUE_NOTIFY, 0);
    ++load->kicks;
  }
}

static u16 wait_for_answers(void) {
  for (u32 poll = 1; queue.used.index == used_seen; ++poll) {
    if (poll % POLLS_A_LOOK == 0) {
      u32 status = read_register(VIRTIO_STATUS);
      expect_true(2, "the device goes on", !(status & VIRTIO_STATUS_NEEDS_RESET));
    }
    pause();
  }
  barrier();
  return queue.used.index;
}

static u32 bucket_of(u64 ticks) {
  if (ticks < STEPS_AN_OCTAVE) {
    return (u32)ticks;
  }
  u32 shift = 63 - (u32)__builtin_clzll(ticks) - 5;
  return (shift + 1) * STEPS_AN_OCTAVE + (u32)(ticks >> shift) % STEPS_AN_OCTAVE;
}

// The first number of ticks above the bucket.
static u64 end_of_bucket(u32 bucket) {
  if (bucket < STEPS_AN_OCTAVE) {
    return bucket + 1;
  }
  u32 shift = bucket / STEPS_AN_OCTAVE - 1;
  return (u64)(STEPS_AN_OCTAVE + bucket % STEPS_AN_OCTAVE + 1) << shift;
}

static u64 percentile(u64 total, u64 percent) {
  u64 wanted = (total * percent + 99) / 100;
  u64 counted = 0;
  u32 bucket = 0;
  while (bucket + 1 < BUCKETS && (counted += latencies[bucket]) < wanted) {
    ++bucket;
  }
  return end_of_bucket(bucket);
}

// Takes what is answered, and puts the next requests into the places of those.
static void take_answers(struct Load* load) {
  u16 end = wait_for_answers();
  u64 now = read_tsc();
  while (used_seen != end) {
    volatile struct UsedElement* element = &queue.used.ring[used_seen++ % ENTRIES];
    u16 slot = (u16)(element->id / CHAIN);
    expect_true(2, "a request that was made", slot < MAXIMUM_DEPTH);
    expect_equal(2, "status", slots[slot].status, BLOCK_OK);
    expect_equal(2, "bytes", element->bytes, load->type == BLOCK_IN ? BLOCK_BYTES + 1 : 1);
    ++latencies[bucket_of(now - slots[slot].started)];
    ++load->done;
    if (wants_more(load)) {
      put(load, slot, now);
    }
  }
  show(load);
}

static void put_field(u64 value) {
  put_char(' ');
  put_number(value);
}

static void run(struct Load* load) {
  memset(latencies, 0, sizeof(latencies));
  build_chains(load->type);
  u64 start_ns = clock_nanoseconds();
  u64 start = read_tsc();
  for (u16 slot = 0; slot < load->depth && wants_more(load); ++slot) {
    put(load, slot, start);
  }
  show(load);
  while (load->done < load->sent) {
    take_answers(load);
  }
  // KVM's clock says how long a tick is: what the TSC counts in 10 ms of the PIT is wrong on a busy
  // host.
  u64 elapsed_ns = clock_nanoseconds() - start_ns;
  u64 scale = (elapsed_ns << SCALE_BITS) / (read_tsc() - start);
  put_text("DONE");
  put_field(load->done);
  put_field(elapsed_ns / 1000);
  put_field(load->kicks);
  put_field(percentile(load->done, 50) * scale >> SCALE_BITS);
  put_field(percentile(load->done, 99) * scale >> SCALE_BITS);
  put_field(percentile(load->done, 100) * scale >> SCALE_BITS);
  put_char('\n');
}

static void obey(char* line) {
  char* rest = line;
  const char* word = next_word(&rest);
  if (!*word) {
    put_line(GUEST_READY_WORD);
    return;
  }
  struct Load load = {.type = same_text(word, "write") ? BLOCK_OUT : BLOCK_IN};
  expect_true(3, "read or write", load.type == BLOCK_OUT || same_text(word, "read"));
  load.count = number_of(next_word(&rest));
  load.depth = number_of(next_word(&rest));
  load.step = number_of(next_word(&rest));
  load.first = number_of(next_word(&rest));
  load.blocks = number_of(next_word(&rest));
  expect_true(3, "a depth", load.depth > 0 && load.depth <= MAXIMUM_DEPTH);
  expect_true(3, "blocks within the disk", load.blocks > 0 && load.first <= disk_blocks &&
                                               load.blocks <= disk_blocks - load.first);
  run(&load);
}

void guest_start(void) {
  static char line[128];
  base = find_block_device(0);
  expect_true(1, "a disk with VIRTIO_F_EVENT_IDX", base && start_device());
  memset(data, 0x5a, sizeof(data));
  clock_nanoseconds();  // starts it
  put_line(GUEST_READY_WORD);
  for (;;) {
    get_line(line, sizeof(line));
    obey(line);
  }
}
