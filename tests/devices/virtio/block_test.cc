#include "devices/virtio/block.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/support/virtio_rig.h"

namespace devices::virtio {
namespace {

using test::BlockRig;
using test::Buffer;
using test::kWrite;

constexpr u32 kIn = 0, kOut = 1, kFlush = 4, kGetId = 8, kDiscard = 11, kWriteZeroes = 13;
constexpr u8 kOk = 0, kIoError = 1, kUnsupported = 2;
constexpr u64 kSectors = BlockRig::kDiskBytes / 512;

BlockConfig read_config(MmioDevice& device) {
  BlockConfig config;
  u8 bytes[sizeof config];
  for (u64 i = 0; i < sizeof bytes; ++i) device.read(0x100 + i, {bytes + i, 1});
  std::memcpy(&config, bytes, sizeof config);
  return config;
}

struct RangeSpec {
  u64 sector;
  u32 count;
  u32 flags;
};

// The ranges lie in the payload area; the status byte of the answer.
u8 answer_ranges(BlockRig& rig, u32 type, const std::vector<RangeSpec>& ranges) {
  u64 at = BlockRig::kPayload;
  for (const RangeSpec& range : ranges) {
    rig.driver().put(at, le64(range.sector));
    rig.driver().put(at + 8, le32(range.count));
    rig.driver().put(at + 12, le32(range.flags));
    at += 16;
  }
  return rig.answer(type, 0, {{BlockRig::kPayload, static_cast<u32>(ranges.size() * 16)}});
}

TEST(Block, ConfigurationTellsSizeAndLimits) {
  BlockRig rig({.queue_count = 4});
  const BlockConfig config = read_config(*rig.device);
  EXPECT_EQ(config.capacity, kSectors);
  EXPECT_EQ(config.seg_max, 126u);
  EXPECT_EQ(config.size_max, 65536u);
  EXPECT_NE(rig.registers->offered() & u64{1} << 1, 0u);
  EXPECT_EQ(config.blk_size, 512u);
  EXPECT_EQ(config.physical_block_exp, 3);
  EXPECT_EQ(config.num_queues, 4);
  EXPECT_EQ(config.discard_sector_alignment, 8u);
  EXPECT_GT(config.max_discard_sectors, 0u);
  EXPECT_EQ(config.write_zeroes_may_unmap, 1);
  EXPECT_EQ(rig.device->workers().size(), 4u);
  EXPECT_NE(rig.registers->offered() & u64{1} << 12, 0u);
}

TEST(Block, WritesThenReadsBack) {
  BlockRig rig;
  rig.start();
  rig.fill(BlockRig::kPayload, 0xab, 4096);
  EXPECT_EQ(rig.answer(kOut, 16, {{BlockRig::kPayload, 4096}}), kOk);
  EXPECT_EQ(rig.disk.bytes[16 * 512], 0xab);
  rig.fill(BlockRig::kPayload, 0, 4096);
  EXPECT_EQ(rig.answer(kIn, 16, {{BlockRig::kPayload, 4096, kWrite}}), kOk);
  EXPECT_EQ(rig.byte(BlockRig::kPayload + 4095), 0xab);
}

TEST(Block, UsedLengthCountsFromTheFirstWritableByte) {
  BlockRig rig;
  rig.start();
  const u16 read = rig.request(0, kIn, 0, {{BlockRig::kPayload, 1024, kWrite}});
  rig.serve();
  rig.serve();
  EXPECT_EQ(rig.driver().take_used(), (test::Used{read, 1025}));
  const u16 failed = rig.request(0, kIn, kSectors, {{BlockRig::kPayload, 1024, kWrite}});
  rig.serve();
  EXPECT_EQ(rig.driver().take_used(), (test::Used{failed, 0})) << "only the last byte is written";
  const u16 write = rig.request(0, kOut, kSectors, {{BlockRig::kPayload, 1024}});
  rig.serve();
  EXPECT_EQ(rig.driver().take_used(), (test::Used{write, 1}));
  const u16 long_id = rig.request(0, kGetId, 0, {{BlockRig::kPayload, 32, kWrite}});
  rig.serve();
  EXPECT_EQ(rig.driver().take_used(), (test::Used{long_id, 20}));
  const u16 id = rig.request(0, kGetId, 0, {{BlockRig::kPayload, 20, kWrite}});
  rig.serve();
  EXPECT_EQ(rig.driver().take_used(), (test::Used{id, 21}));
}

TEST(Block, FramingDoesNotMatter) {
  BlockRig rig;
  rig.start();
  rig.put_header(0, kIn, 8);
  std::fill_n(rig.disk.bytes.begin() + 8 * 512, 512, u8{0x5c});
  // Header in two, data in three, the status byte at the end of the last data descriptor.
  rig.driver().send(std::vector<Buffer>{{BlockRig::kHeader, 7},
                                        {BlockRig::kHeader + 7, 9},
                                        {BlockRig::kPayload, 100, kWrite},
                                        {BlockRig::kPayload + 0x1000, 312, kWrite},
                                        {BlockRig::kPayload + 0x2000, 101, kWrite}});
  rig.serve();
  rig.serve();
  EXPECT_EQ(rig.byte(BlockRig::kPayload + 0x2000 + 99), 0x5c);
  EXPECT_EQ(rig.byte(BlockRig::kPayload + 0x2000 + 100), kOk);
}

TEST(Block, FlushReachesTheDisk) {
  BlockRig rig;
  rig.start();
  EXPECT_EQ(rig.answer(kFlush, 0), kOk);
  EXPECT_EQ(rig.disk.flushes, 1);
}

TEST(Block, DriverThatCannotFlushHasItsWritesMadeDurable) {
  BlockRig rig;
  rig.start(kFeatureVersion1);
  EXPECT_EQ(rig.answer(kIn, 0, {{BlockRig::kPayload, 512, kWrite}}), kOk);
  EXPECT_EQ(rig.disk.flushes, 0);
  EXPECT_EQ(rig.answer(kOut, 0, {{BlockRig::kPayload, 512}}), kOk);
  EXPECT_EQ(rig.disk.flushes, 1);
  EXPECT_EQ(answer_ranges(rig, kWriteZeroes, {{0, 8, 0}, {16, 8, 0}}), kOk);
  EXPECT_EQ(rig.disk.flushes, 2);
  BlockRig other;
  other.start(kFeatureVersion1 | kFeatureFlush);
  EXPECT_EQ(other.answer(kOut, 0, {{BlockRig::kPayload, 512}}), kOk);
  EXPECT_EQ(other.disk.flushes, 0);
}

TEST(Block, GetIdAnswersTheSerialPadded) {
  BlockRig rig;
  rig.start();
  rig.fill(BlockRig::kPayload, 0xff, 32);
  EXPECT_EQ(rig.answer(kGetId, 0, {{BlockRig::kPayload, 20, kWrite}}), kOk);
  std::vector<u8> id(20);
  ASSERT_TRUE(rig.memory->read(Gpa{BlockRig::kPayload}, id));
  EXPECT_EQ(std::string(id.begin(), id.end()), std::string("disk-serial") + std::string(9, '\0'));
}

TEST(Block, DiscardAndWriteZeroesReachTheDiskRangeByRange) {
  for (const test::Completion when : {test::Completion::at_submit, test::Completion::at_poll}) {
    BlockRig rig;
    rig.disk.completion = when;
    std::fill(rig.disk.bytes.begin(), rig.disk.bytes.end(), u8{1});
    rig.start();
    EXPECT_EQ(answer_ranges(rig, kDiscard, {{0, 8, 0}, {64, 8, 0}}), kOk);
    EXPECT_EQ(rig.disk.discards, 2);
    EXPECT_EQ(rig.disk.bytes[64 * 512], 0);
    EXPECT_EQ(rig.disk.bytes[8 * 512], 1);
    EXPECT_EQ(answer_ranges(rig, kWriteZeroes, {{8, 8, 0}}), kOk);
    EXPECT_EQ(rig.disk.unmaps, 0);
    EXPECT_EQ(answer_ranges(rig, kWriteZeroes, {{16, 8, 1}}), kOk);
    EXPECT_EQ(rig.disk.unmaps, 1);
    EXPECT_EQ(rig.disk.bytes[8 * 512], 0);
  }
}

TEST(Block, BadTransfersGetAnError) {  // G28, G29
  BlockRig rig;
  rig.start();
  struct {
    u64 sector;
    u32 length;
  } const cases[] = {{kSectors, 512}, {kSectors - 1, 1024},
                     {~u64{0}, 512},  {u64{1} << 55, 512},
                     {0, 100},        {0, 513},
                     {0, 0}};
  for (const auto& bad : cases) {
    std::vector<Buffer> data;
    if (bad.length != 0) data.push_back({BlockRig::kPayload, bad.length});
    EXPECT_EQ(rig.answer(kOut, bad.sector, data), kIoError) << bad.sector << " " << bad.length;
    if (bad.length != 0) data[0].flags = kWrite;
    EXPECT_EQ(rig.answer(kIn, bad.sector, data), kIoError) << bad.sector << " " << bad.length;
  }
  EXPECT_EQ(rig.disk.submitted, 0);
  EXPECT_FALSE(rig.needs_reset());
}

TEST(Block, StrangeRequestsAreUnsupportedOrFail) {  // G29
  BlockRig rig;
  rig.start();
  for (const u32 type : {2u, 3u, 5u, 9u, 14u, 0x80000000u, 0xffffffffu}) {
    EXPECT_EQ(rig.answer(type, 0), kUnsupported) << type;
  }
  EXPECT_EQ(rig.answer(kFlush, 0, {{BlockRig::kPayload, 512}}), kIoError);
  EXPECT_EQ(rig.answer(kGetId, 0, {{BlockRig::kPayload, 19, kWrite}}), kIoError);
  EXPECT_EQ(rig.answer(kGetId, 0), kIoError);
  EXPECT_EQ(rig.disk.submitted, 0);
}

TEST(Block, ReadOnlyDiskRefusesWritesWhateverWasNegotiated) {  // G30
  BlockRig rig(BlockRig::ReadOnly::yes);
  EXPECT_NE(rig.registers->offered() & u64{1} << 5, 0u);
  EXPECT_EQ(rig.registers->offered() & u64{3} << 13, 0u);
  rig.start(kFeatureVersion1);
  EXPECT_EQ(rig.answer(kOut, 0, {{BlockRig::kPayload, 512}}), kIoError);
  EXPECT_EQ(answer_ranges(rig, kDiscard, {{0, 8, 0}}), kIoError);
  EXPECT_EQ(answer_ranges(rig, kWriteZeroes, {{0, 8, 0}}), kIoError);
  EXPECT_EQ(rig.disk.submitted, 0);
  EXPECT_EQ(rig.answer(kIn, 0, {{BlockRig::kPayload, 512, kWrite}}), kOk);
}

TEST(Block, BadRangesAreAnsweredAndTouchNothing) {  // G31
  BlockRig rig;
  rig.start();
  for (const u32 type : {kDiscard, kWriteZeroes}) {
    EXPECT_EQ(answer_ranges(rig, type, {{0, 0xffffffff, 0}}), kIoError);
    EXPECT_EQ(answer_ranges(rig, type, {{~u64{0} - 4, 8, 0}}), kIoError);
    EXPECT_EQ(answer_ranges(rig, type, {{kSectors - 4, 8, 0}}), kIoError);
    EXPECT_EQ(answer_ranges(rig, type, {{0, 8, 0}, {kSectors, 8, 0}}), kIoError);
    EXPECT_EQ(answer_ranges(rig, type, {{0, 8, 0xfffffffe}}), kUnsupported);
    EXPECT_EQ(answer_ranges(rig, type, std::vector<RangeSpec>(17, {0, 8, 0})), kIoError);
    EXPECT_EQ(rig.answer(type, 0), kIoError);
    EXPECT_EQ(rig.answer(type, 0, {{BlockRig::kPayload, 15}}), kIoError);
  }
  EXPECT_EQ(answer_ranges(rig, kDiscard, {{0, 8, 1}}), kUnsupported);
  EXPECT_EQ(rig.disk.submitted, 0);
}

TEST(Block, DescriptorsInTheWrongOrderGetAnError) {  // G18
  BlockRig rig;
  rig.start();
  rig.put_header(0, kIn, 0);
  const std::vector<Buffer> writable_first{
      {BlockRig::kPayload, 512, kWrite}, {BlockRig::kHeader, 16}, {BlockRig::kStatus, 1, kWrite}};
  rig.driver().send(writable_first);
  rig.serve();
  EXPECT_EQ(rig.status_of(0), kIoError);
  rig.put_header(0, kIn, 0);
  rig.driver().send(
      std::vector<Buffer>{{BlockRig::kHeader, 16, kWrite}, {BlockRig::kStatus, 1, kWrite}});
  rig.serve();
  EXPECT_EQ(rig.status_of(0), kIoError);
  EXPECT_EQ(rig.disk.submitted, 0);
  EXPECT_FALSE(rig.needs_reset());
}

TEST(Block, MoreSegmentsThanOfferedGetAnError) {  // G41's like
  BlockRig rig({}, 256);
  rig.start();
  std::vector<Buffer> data;
  for (u32 i = 0; i < 127; ++i) data.push_back({BlockRig::kPayload + i * 512, 512, kWrite});
  EXPECT_EQ(rig.answer(kIn, 0, data), kIoError);
  data.pop_back();
  EXPECT_EQ(rig.answer(kIn, 0, data), kOk);
}

TEST(Block, MoreRequestsThanSlotsWaitInTheRing) {  // G32
  BlockRig rig({}, 256);
  rig.disk.completion = test::Completion::held;
  rig.start();
  for (u32 i = 0; i < 128; ++i) rig.request(i, kFlush, 0);
  rig.serve();
  rig.serve();
  EXPECT_EQ(rig.disk.submitted, 64);
  rig.disk.completion = test::Completion::at_poll;
  for (int i = 0; i < 3; ++i) rig.serve();
  EXPECT_EQ(rig.driver().used_index(), 128);
  EXPECT_EQ(rig.disk.most_in_flight, 64u);
  for (u32 i = 0; i < 128; ++i) EXPECT_EQ(rig.status_of(i), kOk);
}

// --- work without measure ------------------------------------------------------------------------

constexpr u64 kLargeDisk = 64 * base::kMiB;

// `mebibytes` segments of a MiB, all in the same place.
std::vector<Buffer> large_data(u32 mebibytes, u16 flags) {
  return std::vector<Buffer>(mebibytes, {BlockRig::kPayload, base::kMiB, flags});
}

TEST(Block, TransfersLongerThanTheLimitsAllowGetAnError) {
  BlockRig rig({}, 256, kLargeDisk);
  rig.start();
  std::vector<Buffer> data(126, {BlockRig::kPayload, 64 * base::kKiB, kWrite});
  EXPECT_EQ(rig.answer(kIn, 0, data), kOk) << "what a driver may ask for that keeps to them";
  data.back().length += 512;
  EXPECT_EQ(rig.answer(kIn, 0, data), kIoError);
  EXPECT_EQ(rig.answer(kOut, 0, large_data(8, 0)), kIoError);
  EXPECT_EQ(rig.disk.submitted, 1);
}

TEST(Block, OneTurnMovesALimitedNumberOfBytes) {
  BlockRig rig({}, 256, kLargeDisk);
  rig.disk.completion = test::Completion::at_submit;
  rig.start();
  for (u32 i = 0; i < 10; ++i) rig.request(i, kOut, 0, large_data(7, 0));
  rig.serve();
  EXPECT_EQ(rig.driver().used_index(), 3) << "16 MiB, and the request that passes them";
  EXPECT_EQ(rig.kicker.take(), (std::set<u32>{0})) << "the rest has its turn";
  EXPECT_NE(rig.interrupts(), 0u);
  for (int i = 0; i < 3; ++i) rig.serve();
  EXPECT_EQ(rig.driver().used_index(), 10);
}

TEST(Block, BytesInFlightAreLimited) {
  BlockRig rig({}, 256, kLargeDisk);
  rig.disk.completion = test::Completion::held;
  rig.start();
  for (u32 i = 0; i < 10; ++i) rig.request(i, kIn, 0, large_data(7, kWrite));
  for (int i = 0; i < 3; ++i) rig.serve();
  EXPECT_EQ(rig.disk.submitted, 3);
  rig.disk.completion = test::Completion::at_poll;
  for (int i = 0; i < 5; ++i) rig.serve();
  EXPECT_EQ(rig.driver().used_index(), 10);
}

// Starts pause() in another thread from inside the first submit(), and gives it time to wait.
struct PauseDuringSubmit {
  explicit PauseDuringSubmit(BlockRig& r) : rig(r) {
    rig.disk.on_submit = [this] {
      if (thread.joinable()) return;
      thread = std::thread([this] { rig.device->pause(); });
      std::this_thread::sleep_for(std::chrono::seconds(1));
    };
  }
  ~PauseDuringSubmit() {
    thread.join();
    rig.disk.on_submit = nullptr;
  }
  BlockRig& rig;
  std::thread thread;
};

TEST(Block, PauseWaitsForOneRequestAndNotForTheRing) {
  BlockRig rig({}, 256);
  rig.disk.completion = test::Completion::at_submit;
  rig.start();
  for (u32 i = 0; i < 60; ++i) rig.request(i, kFlush, 0);
  {
    PauseDuringSubmit pause(rig);
    rig.serve();
  }
  EXPECT_EQ(rig.disk.submitted, 1);
  rig.device->drain();
  rig.device->resume();
  EXPECT_EQ(rig.kicker.take(), (std::set<u32>{0}));
  rig.serve();
  EXPECT_EQ(rig.driver().used_index(), 60);
}

TEST(Block, PauseWaitsForAPieceOfADiscardAndTheRestIsHeld) {
  BlockRig rig({}, 16, kLargeDisk);
  std::fill(rig.disk.bytes.begin(), rig.disk.bytes.end(), u8{1});
  rig.disk.completion = test::Completion::at_submit;
  rig.start();
  rig.driver().put(BlockRig::kPayload, le64(8));
  rig.driver().put(BlockRig::kPayload + 8, le32(kLargeDisk / 512 - 16));
  rig.driver().put(BlockRig::kPayload + 12, le32(0));
  const u16 head = rig.request(0, kDiscard, 0, {{BlockRig::kPayload, 16}});
  {
    PauseDuringSubmit pause(rig);
    rig.serve();
  }
  EXPECT_EQ(rig.disk.submitted, 1);
  rig.device->drain();
  const MmioState state = rig.device->save();
  EXPECT_EQ(state.queues[0].held, std::vector<u16>{head});
  EXPECT_TRUE(rig.device->validate(state));
  EXPECT_EQ(rig.driver().used_index(), 0);
  EXPECT_EQ(rig.machine.out_of_spaces, 0);

  rig.device->resume();
  rig.serve();
  EXPECT_EQ(rig.driver().take_used(), (test::Used{head, 1}));
  EXPECT_EQ(rig.disk.submitted, 1 + 4);
  const std::span<const u8> zeroed = std::span(rig.disk.bytes).subspan(8 * 512, kLargeDisk - 8192);
  EXPECT_EQ(std::ranges::count(zeroed, 0), std::ssize(zeroed));
  EXPECT_EQ(rig.disk.bytes[8 * 512 - 1] + rig.disk.bytes[kLargeDisk - 4096], 2);
}

// The kernel may signal a completion after drain() took it: who waits for the event would be woken
// for nothing until the machine goes on.
TEST(Block, QuietQueueStillTakesTheCompletionEvent) {
  BlockRig rig;
  rig.start();
  rig.device->pause();
  rig.device->drain();
  rig.request(0, kFlush, 0);
  const int before = rig.disk.polls;
  rig.serve();
  EXPECT_EQ(rig.disk.polls, before + 1);
  EXPECT_EQ(rig.disk.submitted, 0);
  rig.device->reset();
  rig.serve();
  EXPECT_EQ(rig.disk.polls, before + 2);
}

// A vCPU that resets the device waits no longer than a pause.
TEST(Block, ResetWaitsForOneRequestAndNotForTheRing) {
  BlockRig rig({}, 256);
  rig.disk.completion = test::Completion::at_submit;
  rig.start();
  for (u32 i = 0; i < 60; ++i) rig.request(i, kFlush, 0);
  std::thread vcpu;
  rig.disk.on_submit = [&] {
    if (vcpu.joinable()) return;
    vcpu = std::thread([&] { rig.registers->write(test::Register::status, 0); });
    std::this_thread::sleep_for(std::chrono::seconds(1));
  };
  rig.serve();
  vcpu.join();
  EXPECT_EQ(rig.disk.submitted, 1);
}

TEST(Block, DiskErrorBecomesAnIoError) {
  BlockRig rig;
  rig.start();
  rig.disk.write_status = blockdev::BlockStatus::io_error;
  EXPECT_EQ(rig.answer(kOut, 0, {{BlockRig::kPayload, 512}}), kIoError);
  rig.disk.write_status = blockdev::BlockStatus::read_only;
  EXPECT_EQ(rig.answer(kFlush, 0), kIoError);
}

TEST(Block, NoSpaceWithPolicyErrorBecomesAnIoError) {  // G33
  BlockRig rig({.on_no_space = OnNoSpace::error});
  rig.start();
  rig.disk.write_status = blockdev::BlockStatus::no_space;
  EXPECT_EQ(rig.answer(kOut, 0, {{BlockRig::kPayload, 512}}), kIoError);
  EXPECT_EQ(rig.machine.out_of_spaces, 0);
}

TEST(Block, NoSpaceHoldsTheRequestUntilResume) {  // G33
  BlockRig rig;
  rig.start();
  rig.fill(BlockRig::kPayload, 0x66, 512);
  rig.disk.write_status = blockdev::BlockStatus::no_space;
  const u16 head = rig.request(0, kOut, 0, {{BlockRig::kPayload, 512}});
  rig.serve();
  rig.serve();
  rig.serve();
  EXPECT_EQ(rig.machine.out_of_spaces, 1) << "tried again by itself";
  EXPECT_EQ(rig.machine.last_disk(), "root");
  EXPECT_EQ(rig.driver().used_index(), 0);

  rig.device->pause();
  rig.device->drain();
  rig.device->resume();  // still no room
  rig.serve();
  rig.serve();
  EXPECT_EQ(rig.machine.out_of_spaces, 2);
  EXPECT_EQ(rig.driver().used_index(), 0);

  rig.disk.write_status = blockdev::BlockStatus::ok;
  rig.device->pause();
  rig.device->drain();
  rig.device->resume();
  rig.serve();
  rig.serve();
  EXPECT_EQ(rig.driver().take_used(), (test::Used{head, 1}));
  EXPECT_EQ(rig.status_of(0), kOk);
  EXPECT_EQ(rig.disk.bytes[0], 0x66);
}

// A drain finds a flush that waits for something which may take long: the guest must not notice.
TEST(Block, FlushThatADrainFoundWaitingIsDoneAfterTheResume) {
  BlockRig rig;
  rig.start();
  rig.disk.completion = test::Completion::held;
  rig.disk.write_status = blockdev::BlockStatus::not_begun;
  const u16 head = rig.request(0, kFlush, 0, {});
  rig.serve();
  rig.device->pause();
  rig.device->drain();
  EXPECT_EQ(rig.driver().used_index(), 0);
  rig.disk.completion = test::Completion::at_poll;
  rig.disk.write_status = blockdev::BlockStatus::ok;
  rig.device->resume();
  rig.serve();
  rig.serve();
  EXPECT_EQ(rig.driver().take_used(), (test::Used{head, 1}));
  EXPECT_EQ(rig.status_of(0), kOk);
  EXPECT_EQ(rig.disk.flushes, 1);
}

TEST(Block, HeldRequestIsStillInFlightForTheRing) {  // G19
  BlockRig rig;
  rig.start();
  rig.disk.write_status = blockdev::BlockStatus::no_space;
  const u16 head = rig.request(0, kOut, 0, {{BlockRig::kPayload, 512}});
  rig.serve();
  rig.serve();
  rig.driver().publish(head);
  rig.serve();
  EXPECT_TRUE(rig.needs_reset());
}

// The guest wrote while the host was full, the machine was saved, and there is room where it is
// restored.
TEST(Block, HeldRequestOfASnapshotIsDoneAfterRestore) {
  BlockRig rig;
  rig.start();
  rig.fill(BlockRig::kPayload, 0x31, 512);
  rig.disk.write_status = blockdev::BlockStatus::no_space;
  const u16 head = rig.request(0, kOut, 4, {{BlockRig::kPayload, 512}});
  rig.serve();
  rig.device->pause();
  rig.device->drain();
  const base::Bytes bytes = base::encode_state(rig.device->save());

  BlockRig other;
  std::ranges::copy(rig.memory->quiet_ram(), other.memory->quiet_ram().begin());
  const Result<MmioState> state = base::decode_state<MmioState>(bytes);
  ASSERT_TRUE(state);
  other.device->pause();
  ASSERT_TRUE(other.device->restore(*state));
  other.device->resume();
  EXPECT_EQ(other.kicker.take(), (std::set<u32>{0}));
  other.serve();
  other.serve();
  EXPECT_EQ(other.driver().take_used(), (test::Used{head, 1}));
  EXPECT_EQ(other.disk.bytes[4 * 512], 0x31);
  EXPECT_FALSE(other.needs_reset());
}

TEST(Block, HeldHeadWhoseChainIsGarbageStopsTheDevice) {
  BlockRig rig, other;
  rig.start();
  rig.disk.write_status = blockdev::BlockStatus::no_space;
  const u16 head = rig.request(0, kOut, 4, {{BlockRig::kPayload, 512}});
  rig.serve();
  rig.device->pause();
  rig.device->drain();
  rig.driver().set_descriptor(head, kSectors * 4096, 1, 0, 0);
  std::ranges::copy(rig.memory->quiet_ram(), other.memory->quiet_ram().begin());
  ASSERT_TRUE(other.device->restore(rig.device->save()));
  other.device->resume();
  other.serve();
  EXPECT_TRUE(other.needs_reset());
  EXPECT_TRUE(other.device->validate(other.device->save()));
}

TEST(Block, QueuesWorkIndependently) {
  BlockRig rig({.queue_count = 2});
  rig.start();
  rig.put_header(0, kFlush, 0);
  rig.drivers[1].send(std::vector<Buffer>{{BlockRig::kHeader, 16}, {BlockRig::kStatus, 1, kWrite}});
  rig.serve(0);
  EXPECT_EQ(rig.drivers[1].used_index(), 0);
  rig.serve(1);
  rig.serve(1);
  EXPECT_EQ(rig.drivers[1].used_index(), 1);
  rig.drivers[0].publish(99);
  rig.serve(0);
  EXPECT_TRUE(rig.needs_reset());
}

TEST(Rng, FillsTheBufferAndTellsHowMuch) {
  test::RngRig rig;
  rig.start();
  rig.driver().send(
      std::vector<Buffer>{{test::kData, 100, kWrite}, {test::kData + 4096, 28, kWrite}});
  rig.serve();
  EXPECT_EQ(rig.driver().take_used(), (test::Used{0, 128}));
  std::vector<u8> bytes(28);
  ASSERT_TRUE(rig.memory->read(Gpa{test::kData + 4096}, bytes));
  EXPECT_NE(bytes, std::vector<u8>(28, 0));
}

TEST(Rng, OneRequestGetsAtMost64KiB) {  // G34
  test::RngRig rig;
  rig.start();
  rig.driver().send(std::vector<Buffer>{{test::kData, 1 << 20, kWrite}});
  rig.serve();
  EXPECT_EQ(rig.driver().take_used(), (test::Used{0, 65536}));
  EXPECT_EQ(rig.byte(test::kData + 65536), 0);
}

TEST(Rng, RequestsWithoutRoomAreAnsweredEmpty) {  // G34
  test::RngRig rig;
  rig.start();
  rig.driver().send(std::vector<Buffer>{{test::kData, 0, kWrite}});
  rig.driver().send(std::vector<Buffer>{{test::kData, 64}});
  rig.serve();
  EXPECT_EQ(rig.driver().take_used(), (test::Used{0, 0}));
  EXPECT_EQ(rig.driver().take_used(), (test::Used{1, 0}));
  EXPECT_FALSE(rig.needs_reset());
}

}  // namespace
}  // namespace devices::virtio
