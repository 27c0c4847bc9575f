// The rules of the ring, driven through a whole device: what breaks one stops it, and only it.

#include "devices/virtio/queue.h"

#include <gtest/gtest.h>

#include "tests/support/virtio_rig.h"

namespace devices::virtio {
namespace {

using test::BlockRig;
using test::Buffer;
using test::kData;
using test::kIndirect;
using test::kNext;
using test::kWrite;

constexpr u64 kTable = kData + 0x40000;  // an indirect table

struct BadRing {
  const char* name;
  void (*spoil)(BlockRig&);
};

class Hostile : public testing::TestWithParam<BadRing> {};

// Each case publishes something broken; a well-formed flush went before and must be answered.
TEST_P(Hostile, RingStopsTheDeviceAndEarlierRequestsComplete) {
  BlockRig rig;
  rig.disk.completion = test::Completion::held;
  rig.start();
  rig.request(0, 4, 0);  // descriptors 0 and 1
  rig.serve();
  GetParam().spoil(rig);
  rig.serve();
  EXPECT_TRUE(rig.needs_reset());
  EXPECT_NE(rig.interrupts() & kConfigChange, 0u);
  EXPECT_EQ(rig.disk.submitted, 1);
  rig.device->pause();
  rig.device->drain();
  EXPECT_EQ(rig.driver().used_index(), 1);
  EXPECT_EQ(rig.status_of(0), 0);
  // Its state is one that can be saved and restored.
  const MmioState state = rig.device->save();
  BlockRig other;
  ASSERT_TRUE(other.device->restore(state));
  EXPECT_TRUE(other.needs_reset());
  other.device->resume();
  other.serve();
  EXPECT_EQ(other.disk.submitted, 0);
  // Reset helps.
  rig.device->resume();
  rig.disk.completion = test::Completion::at_poll;
  rig.driver().restart();
  rig.start();
  EXPECT_EQ(rig.answer(4, 0), 0);
}

void publish_chain(BlockRig& rig, u64 address, u32 length, u16 flags, u16 next) {
  rig.driver().set_descriptor(4, address, length, flags, next);
  rig.driver().publish(4);
}

void publish_indirect(BlockRig& rig, u32 length, u16 flags = kIndirect) {
  publish_chain(rig, kTable, length, flags, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Every, Hostile,
    testing::Values(
        BadRing{"HeadOutsideTheTable", [](BlockRig& r) { r.driver().publish(16); }},  // G01
        BadRing{"NextOutsideTheTable",
                [](BlockRig& r) { publish_chain(r, kData, 16, kNext, 16); }},  // G02
        BadRing{"ChainToItself",
                [](BlockRig& r) { publish_chain(r, kData, 16, kNext, 4); }},  // G03
        BadRing{"ZeroLengthChainToItself",
                [](BlockRig& r) { publish_chain(r, kData, 0, kNext, 4); }},  // G03, G06
        BadRing{"CycleOfTwo",
                [](BlockRig& r) {
                  r.driver().set_descriptor(5, kData, 16, kNext, 4);
                  publish_chain(r, kData, 16, kNext, 5);
                }},
        BadRing{"CycleOfFullLength",
                [](BlockRig& r) {
                  for (u16 i = 2; i < 16; ++i) {
                    r.driver().set_descriptor(i, kData, 16, kNext,
                                              i == 15 ? u16{2} : static_cast<u16>(i + 1));
                  }
                  r.driver().publish(2);
                }},
        BadRing{"AvailIndexJumpsAhead",
                [](BlockRig& r) { r.driver().set_avail_index(18); }},  // G04
        BadRing{"AvailIndexGoesBackwards",
                [](BlockRig& r) { r.driver().set_avail_index(0); }},  // G05
        BadRing{"OnlyZeroLengths",
                [](BlockRig& r) { publish_chain(r, kData, 0, kWrite, 0); }},  // G06
        BadRing{"LengthOfFourGigabytes",
                [](BlockRig& r) { publish_chain(r, kData, 0xffffffff, kWrite, 0); }},  // G07
        BadRing{"AddressWraps",
                [](BlockRig& r) { publish_chain(r, ~u64{0} - 8, 16, kWrite, 0); }},  // G08
        BadRing{"BufferInTheDeviceHole",
                [](BlockRig& r) { publish_chain(r, 0xd0000000, 16, kWrite, 0); }},  // G09
        BadRing{"BufferOverTheEndOfRam",
                [](BlockRig& r) { publish_chain(r, test::kRamBytes - 8, 16, kWrite, 0); }},
        BadRing{"IndirectWithNext",
                [](BlockRig& r) { publish_indirect(r, 16, kIndirect | kNext); }},  // G17
        BadRing{"IndirectOfLengthZero", [](BlockRig& r) { publish_indirect(r, 0); }},
        BadRing{"IndirectOfAnOddLength", [](BlockRig& r) { publish_indirect(r, 24); }},
        BadRing{"IndirectLongerThanTheQueue", [](BlockRig& r) { publish_indirect(r, 17 * 16); }},
        BadRing{"IndirectOf65536Entries", [](BlockRig& r) { publish_indirect(r, 65536 * 16); }},
        BadRing{"IndirectTableOutsideRam",
                [](BlockRig& r) { publish_chain(r, test::kRamBytes, 32, kIndirect, 0); }},
        BadRing{"IndirectInIndirect",
                [](BlockRig& r) {
                  r.driver().write_descriptor(kTable, kTable, 16, kIndirect, 0);
                  publish_indirect(r, 16);
                }},
        BadRing{"IndirectNextOutsideItsTable",
                [](BlockRig& r) {
                  r.driver().write_descriptor(kTable, kData, 16, kNext, 2);
                  publish_indirect(r, 32);
                }},
        BadRing{"IndirectLoop",
                [](BlockRig& r) {
                  r.driver().write_descriptor(kTable, kData, 16, kNext, 0);
                  publish_indirect(r, 32);
                }},
        BadRing{"NoRoomForAnAnswer",
                [](BlockRig& r) { publish_chain(r, kData, 16, 0, 0); }},           // G18
        BadRing{"HeadInFlightTwice", [](BlockRig& r) { r.driver().publish(0); }},  // G19
        BadRing{"MiddleDescriptorInFlightTwice",
                [](BlockRig& r) { publish_chain(r, kData, 16, kNext, 1); }}),  // G19
    [](const auto& test_info) { return test_info.param.name; });

TEST(Ring, IndirectThatWasNotNegotiatedStopsTheDevice) {  // G17
  BlockRig rig;
  rig.start(kFeatureVersion1);
  publish_indirect(rig, 32);
  rig.serve();
  EXPECT_TRUE(rig.needs_reset());
}

TEST(Ring, IndirectChainIsServed) {
  BlockRig rig;
  rig.start();
  rig.put_header(0, 0, 0);
  rig.disk.bytes[0] = 0x42;
  const std::vector<Buffer> chain{
      {BlockRig::kHeader, 16}, {BlockRig::kPayload, 512, kWrite}, {BlockRig::kStatus, 1, kWrite}};
  const u16 head = rig.driver().add_indirect(kTable, chain);
  rig.driver().publish(head);
  rig.serve();
  rig.serve();
  EXPECT_EQ(rig.driver().take_used(), (test::Used{head, 513}));
  EXPECT_EQ(rig.byte(BlockRig::kPayload), 0x42);
}

TEST(Ring, ZeroLengthDescriptorsBetweenOthersAreSkipped) {  // G06
  BlockRig rig;
  rig.start();
  EXPECT_EQ(
      rig.answer(0, 0, {{0, 0, kWrite}, {BlockRig::kPayload, 512, kWrite}, {~u64{0}, 0, kWrite}}),
      0);
}

TEST(Ring, WrapsAround65536) {
  BlockRig rig;
  rig.disk.completion = test::Completion::at_submit;
  rig.start();
  for (u32 i = 0; i < 70000; ++i) {
    const u16 head = rig.request(0, 4, 0);
    rig.serve();
    ASSERT_EQ(rig.driver().take_used(), (test::Used{head, 1}));
  }
  EXPECT_FALSE(rig.needs_reset());
}

TEST(Ring, BufferOverTheRingsDamagesTheGuestOnly) {  // G10
  BlockRig rig;
  std::fill(rig.disk.bytes.begin(), rig.disk.bytes.end(), u8{0xff});
  rig.start();
  rig.request(0, 0, 0, {{test::kRings, 0x4000, kWrite}});
  for (int i = 0; i < 4; ++i) rig.serve();
  rig.device->reset();
  EXPECT_EQ(rig.status(), 0u);
}

TEST(Ring, WithoutEventIndexTheFlagSilencesInterrupts) {
  BlockRig rig;
  rig.start(kFeatureVersion1);
  rig.driver().set_avail_flags(1);
  rig.answer(4, 0);
  EXPECT_EQ(rig.irq.edges(), 0u);
  rig.driver().set_avail_flags(0);
  rig.answer(4, 0);
  EXPECT_EQ(rig.irq.edges(), 1u);
}

TEST(Ring, EventIndexInterruptsWhenUsedPassesIt) {
  BlockRig rig;
  rig.start();
  rig.driver().set_used_event(2);
  rig.answer(4, 0);
  rig.answer(4, 0);
  EXPECT_EQ(rig.irq.edges(), 0u);
  rig.answer(4, 0);
  EXPECT_EQ(rig.irq.edges(), 1u);
}

TEST(Ring, InterruptsAreAtMostOneForEachBuffer) {  // G27
  BlockRig rig;
  rig.start();
  for (u16 i = 0; i < 20; ++i) {
    rig.driver().set_used_event(i);
    rig.answer(4, 0);
    rig.serve();
    rig.serve();
  }
  EXPECT_EQ(rig.irq.edges(), 20u);
}

TEST(Ring, IdleQueueAsksForTheNextNotification) {
  BlockRig rig;
  rig.start();
  rig.answer(4, 0);
  EXPECT_EQ(rig.driver().avail_event(), 1);
}

// A snapshot at which used.idx is 3 and the guest has asked for an interrupt past 3. On the
// abandoned timeline the device went on to 10 and interrupted there. If it still believed after the
// revert that it had signalled 10, the interrupt for the fourth buffer would be swallowed.
TEST(Ring, RevertDoesNotSwallowTheNextInterrupt) {
  BlockRig rig;
  rig.start();
  const auto one = [&](u16 used_event) {
    rig.driver().set_used_event(used_event);
    rig.answer(4, 0);
  };
  for (u16 i = 0; i < 3; ++i) one(i);
  const MmioState saved = rig.device->save();
  const std::vector<u8> ram(rig.memory->quiet_ram().begin(), rig.memory->quiet_ram().end());
  const test::MockDriver driver_then = rig.driver();
  for (u16 i = 3; i < 10; ++i) one(i);

  rig.device->pause();
  rig.device->drain();
  std::ranges::copy(ram, rig.memory->quiet_ram().begin());
  ASSERT_TRUE(rig.device->restore(saved));
  EXPECT_EQ(rig.device->save().queues[0].signalled_used, 3);
  rig.device->resume();
  rig.irq.take_edges();
  test::MockDriver& driver = rig.driver();
  driver.set_used_event(3);
  driver.set_avail_index(driver_then.avail_index());
  driver.publish(0);
  rig.serve();
  rig.serve();
  EXPECT_EQ(rig.irq.edges(), 1u);
}

TEST(Ring, UsedRingAndStatusAreInTheDirtyLog) {
  BlockRig rig;
  rig.start();
  rig.request(0, 0, 0, {{BlockRig::kPayload, 4096, kWrite}});
  memory::PageSet dirty(rig.memory->page_count());
  rig.memory->dirty_log().collect(dirty);  // what the driver itself has written
  dirty.reset();
  rig.serve();
  rig.serve();
  rig.memory->dirty_log().collect(dirty);
  const u64 used_ring = rig.driver().geometry().used_ring;
  for (const u64 address : {used_ring, BlockRig::kPayload, BlockRig::kStatus}) {
    EXPECT_TRUE(dirty.contains(address / base::kPageBytes)) << address;
  }
  EXPECT_EQ(dirty.count(), 3u);
}

}  // namespace
}  // namespace devices::virtio
