// Every answer of virtio-blk but success, and the odd shapes of chains that must succeed. By itself;
// each check is named in a line CHECK and has its own exit code, its number.
//
// A read-only disk (given as the second) must refuse writes.

#include "guests/virtio_blk.h"

static struct Disk disk;
static u32 check_number;
static u8 data[8 * SECTOR_BYTES] __attribute__((aligned(4096)));
static struct Descriptor indirect[QUEUE_ENTRIES] __attribute__((aligned(16)));

static void answers(const char* what, u8 status, u8 expected) {
  ++check_number;
  put_text("CHECK ");
  put_number(check_number);
  put_char(' ');
  put_line(what);
  expect_equal(check_number, what, status, expected);
}

static u8 request(u32 type, u64 sector, u32 bytes) {
  return disk_request(&disk, (enum BlockRequestType)type, sector, data, bytes);
}

static u8 segment_request(u32 type, u64 sector, u32 sectors, u32 flags) {
  *(struct BlockSegment*)data = (struct BlockSegment){sector, sectors, flags};
  return request(type, 0, sizeof(struct BlockSegment));
}

static void set_header(u32 type, u64 sector) {
  disk.header = (struct BlockHeader){type, 0, sector};
  disk.status = BLOCK_NO_ANSWER;
}

static struct Descriptor piece(const void* address, u32 bytes, u16 flags, u16 next) {
  return (struct Descriptor){(u64)address, bytes, flags, next};
}

static u8 submit(u16 head) {
  return disk_submit(&disk, head) < 0 ? (u8)BLOCK_NO_ANSWER : *(volatile u8*)&disk.status;
}

static void check_ranges(void) {
  answers("read of the last sector", request(BLOCK_IN, disk.sectors - 1, SECTOR_BYTES), BLOCK_OK);
  answers("read past the end", request(BLOCK_IN, disk.sectors, SECTOR_BYTES), BLOCK_IOERR);
  answers("read across the end", request(BLOCK_IN, disk.sectors - 1, 2 * SECTOR_BYTES), BLOCK_IOERR);
  answers("write across the end", request(BLOCK_OUT, disk.sectors - 1, 2 * SECTOR_BYTES),
          BLOCK_IOERR);
  answers("sector whose byte offset wraps", request(BLOCK_IN, 1ull << 55, SECTOR_BYTES),
          BLOCK_IOERR);
  answers("last sector of all", request(BLOCK_OUT, ~0ull, SECTOR_BYTES), BLOCK_IOERR);
  answers("read of half a sector", request(BLOCK_IN, 0, 256), BLOCK_IOERR);
  answers("write of a sector and a byte", request(BLOCK_OUT, 0, SECTOR_BYTES + 1), BLOCK_IOERR);
}

static void check_types(void) {
  answers("unknown type", request(77, 0, SECTOR_BYTES), BLOCK_UNSUPPORTED);
  answers("type of all ones", request(~0u, 0, SECTOR_BYTES), BLOCK_UNSUPPORTED);
}

static void check_segments(void) {
  if (disk.features & BLOCK_F_DISCARD) {
    answers("discard past the end", segment_request(BLOCK_DISCARD, disk.sectors, 8, 0), BLOCK_IOERR);
    answers("discard that wraps", segment_request(BLOCK_DISCARD, ~0ull - 3, 8, 0), BLOCK_IOERR);
    // virtio 1.2, 5.2.6.2: unmap must not be set for discard.
    answers("discard with unmap", segment_request(BLOCK_DISCARD, 0, 8, 1), BLOCK_UNSUPPORTED);
    answers("discard with an unknown flag", segment_request(BLOCK_DISCARD, 0, 8, 2),
            BLOCK_UNSUPPORTED);
  }
  if (disk.features & BLOCK_F_WRITE_ZEROES) {
    answers("zeroes past the end", segment_request(BLOCK_WRITE_ZEROES, disk.sectors, 8, 0),
            BLOCK_IOERR);
    answers("zeroes with an unknown flag", segment_request(BLOCK_WRITE_ZEROES, 0, 8, 4),
            BLOCK_UNSUPPORTED);
  }
}

// virtio 1.2, 2.7.4 "Message Framing": the device may not rely on how a request is cut up.
static void check_shapes(void) {
  struct Descriptor* descriptors = disk.queue->descriptors;
  set_header(BLOCK_IN, 0);
  descriptors[0] = piece(&disk.header, 8, DESCRIPTOR_NEXT, 1);
  descriptors[1] = piece((u8*)&disk.header + 8, 8, DESCRIPTOR_NEXT, 2);
  descriptors[2] = piece(data, 100, DESCRIPTOR_NEXT | DESCRIPTOR_WRITE, 3);
  descriptors[3] = piece(data + 100, SECTOR_BYTES - 100, DESCRIPTOR_NEXT | DESCRIPTOR_WRITE, 4);
  descriptors[4] = piece(&disk.status, 1, DESCRIPTOR_WRITE, 0);
  answers("header and data cut into pieces", submit(0), BLOCK_OK);

  // Out of order in the table, backwards.
  set_header(BLOCK_IN, 0);
  descriptors[9] = piece(&disk.header, 16, DESCRIPTOR_NEXT, 5);
  descriptors[5] = piece(data, SECTOR_BYTES, DESCRIPTOR_NEXT | DESCRIPTOR_WRITE, 2);
  descriptors[2] = piece(&disk.status, 1, DESCRIPTOR_WRITE, 0);
  answers("chain backwards through the table", submit(9), BLOCK_OK);

  if (disk.features & VIRTIO_F_INDIRECT_DESC) {
    set_header(BLOCK_IN, 0);
    indirect[0] = piece(&disk.header, 16, DESCRIPTOR_NEXT, 1);
    indirect[1] = piece(data, SECTOR_BYTES, DESCRIPTOR_NEXT | DESCRIPTOR_WRITE, 2);
    indirect[2] = piece(&disk.status, 1, DESCRIPTOR_WRITE, 0);
    descriptors[0] = piece(indirect, 3 * sizeof(struct Descriptor), DESCRIPTOR_INDIRECT, 0);
    answers("indirect table", submit(0), BLOCK_OK);
  }
}

static void check_read_only(void) {
  static struct Disk read_only;
  if (!disk_open(&read_only, 1) || !(read_only.features & BLOCK_F_RO)) {
    put_line("NO-READ-ONLY-DISK");
    return;
  }
  answers("write to a read-only disk",
          disk_request(&read_only, BLOCK_OUT, 0, data, SECTOR_BYTES), BLOCK_IOERR);
  answers("read of a read-only disk",
          disk_request(&read_only, BLOCK_IN, 0, data, SECTOR_BYTES), BLOCK_OK);
}

void guest_start(void) {
  if (!disk_open(&disk, 0)) {
    put_line("no disk");
    guest_exit(99);
  }
  check_ranges();
  check_types();
  check_segments();
  check_shapes();
  check_read_only();
  answers("read after all that", request(BLOCK_IN, 0, SECTOR_BYTES), BLOCK_OK);
  guest_exit(0);
}
