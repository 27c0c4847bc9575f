#include "devices/virtio/mmio.h"

#include <gtest/gtest.h>

#include "tests/support/stateful_contract.h"
#include "tests/support/virtio_rig.h"

namespace devices::virtio {
namespace {

using test::BlockRig;
using test::kRings;
using test::RngRig;

TEST(Mmio, TellsWhatItIs) {
  BlockRig rig;
  EXPECT_EQ(rig.registers->read(Register::magic_value), 0x74726976u);
  EXPECT_EQ(rig.registers->read(Register::version), 2u);
  EXPECT_EQ(rig.registers->read(Register::device_id), 2u);
  EXPECT_EQ(rig.registers->read(Register::queue_size_max), kMaxQueueSize);
  EXPECT_EQ(rig.device->state_name(), "virtio-mmio.3");
  EXPECT_NE(rig.registers->offered() & kFeatureVersion1, 0u);
  EXPECT_EQ(rig.registers->read(Register::shared_memory_length_low), 0xffffffffu);
}

TEST(Mmio, InitializationRunsInItsOrder) {
  BlockRig rig;
  rig.start();
  EXPECT_EQ(rig.status(), u32{kAcknowledge | kDriver | kFeaturesOk | kDriverOk});
}

TEST(Mmio, DriverOkKicksForWhatTheRingHolds) {
  BlockRig rig({.queue_count = 2});
  rig.registers->negotiate(rig.registers->offered());
  rig.registers->driver_ok();
  EXPECT_EQ(rig.kicker.take(), (std::set<u32>{0, 1}));
}

TEST(Mmio, SkippedStepsAndBitsTakenBackAreIgnored) {  // G23
  BlockRig rig;
  rig.registers->write(Register::status, kAcknowledge | kDriver);
  EXPECT_EQ(rig.status(), 0u);
  rig.registers->write(Register::status, kDriverOk);
  EXPECT_EQ(rig.status(), 0u);
  rig.registers->write(Register::status, kAcknowledge);
  rig.registers->write(Register::status, kAcknowledge | kDriver);
  rig.registers->write(Register::status, kAcknowledge);
  EXPECT_EQ(rig.status(), u32{kAcknowledge | kDriver});
  rig.registers->write(Register::status, kAcknowledge | kDriver | 0x20);
  EXPECT_EQ(rig.status(), u32{kAcknowledge | kDriver});
}

TEST(Mmio, AfterFailedOnlyResetHelps) {  // G23
  BlockRig rig;
  rig.registers->set_status(kAcknowledge);
  rig.registers->set_status(kFailed);
  rig.registers->set_status(kDriver);
  EXPECT_EQ(rig.status(), u32{kAcknowledge | kFailed});
  rig.registers->write(Register::status, 0);
  EXPECT_EQ(rig.status(), 0u);
}

TEST(Mmio, FeaturesNeverOfferedAreNotAccepted) {  // G22
  BlockRig rig;
  rig.registers->negotiate(rig.registers->offered() | u64{1} << 34);  // RING_PACKED
  EXPECT_EQ(rig.status() & kFeaturesOk, 0u);
  rig.registers->negotiate(rig.registers->offered() & ~kFeatureVersion1);
  EXPECT_EQ(rig.status() & kFeaturesOk, 0u);
}

TEST(Mmio, FeaturesAreFixedAfterFeaturesOkAndSelectIsBounded) {  // G22
  BlockRig rig;
  rig.registers->negotiate(kFeatureVersion1);
  rig.registers->write_features(rig.registers->offered());
  EXPECT_EQ(rig.device->save().driver_features, kFeatureVersion1);
  rig.registers->write(Register::device_features_select, 1u << 31);
  EXPECT_EQ(rig.registers->read(Register::device_features), 0u);
  rig.registers->write(Register::status, 0);
  rig.registers->set_status(kAcknowledge);
  rig.registers->set_status(kDriver);
  rig.registers->write(Register::driver_features_select, 1u << 31);
  rig.registers->write(Register::driver_features, 0xffffffff);
  EXPECT_EQ(rig.device->save().driver_features, 0u);
}

struct BadGeometry {
  const char* name;
  void (*spoil)(QueueState&);
};

class Geometry : public testing::TestWithParam<BadGeometry> {};

TEST_P(Geometry, IsRefusedAtDriverOk) {  // G11, G12, G13
  BlockRig rig;
  QueueState queue = rig.driver().geometry();
  GetParam().spoil(queue);
  rig.registers->negotiate(rig.registers->offered());
  rig.registers->set_queue(0, queue);
  rig.registers->driver_ok();
  EXPECT_TRUE(rig.needs_reset());
  EXPECT_EQ(rig.interrupts(), u32{kConfigChange});
  EXPECT_EQ(rig.irq.edges(), 1u);
  rig.request(0, 0, 0, {{BlockRig::kPayload, 512, test::kWrite}});
  rig.serve();
  EXPECT_EQ(rig.disk.submitted, 0);
  // What the registers refuse, a snapshot may not bring back.
  MmioState state = rig.device->save();
  EXPECT_TRUE(rig.device->validate(state));
  state.status &= ~u32{kNeedsReset};
  EXPECT_FALSE(rig.device->validate(state));
}

INSTANTIATE_TEST_SUITE_P(
    Bad, Geometry,
    testing::Values(
        BadGeometry{"SizeZero", [](QueueState& q) { q.size = 0; }},
        BadGeometry{"SizeThree", [](QueueState& q) { q.size = 3; }},
        BadGeometry{"SizeAboveMaximum", [](QueueState& q) { q.size = 512; }},
        BadGeometry{"SizeSixteenBitsTooWide", [](QueueState& q) { q.size = 0x10010; }},
        BadGeometry{"TableMisaligned", [](QueueState& q) { q.descriptor_table += 8; }},
        BadGeometry{"AvailMisaligned", [](QueueState& q) { q.avail_ring += 1; }},
        BadGeometry{"UsedMisaligned", [](QueueState& q) { q.used_ring += 2; }},
        BadGeometry{"TableOutsideRam", [](QueueState& q) { q.descriptor_table = test::kRamBytes; }},
        BadGeometry{"AvailOverTheEnd", [](QueueState& q) { q.avail_ring = test::kRamBytes - 8; }},
        BadGeometry{"UsedInTheDeviceHole", [](QueueState& q) { q.used_ring = 0xd0000000; }},
        BadGeometry{"UsedWraps", [](QueueState& q) { q.used_ring = ~u64{3}; }}),
    [](const auto& test_info) { return test_info.param.name; });

TEST(Mmio, GeometryIsFrozenByDriverOk) {  // G14
  BlockRig rig;
  rig.start();
  const base::Bytes before = test::bytes_of(*rig.device);
  QueueState other = rig.driver().geometry();
  other.size = 8;
  other.descriptor_table += 0x1000;
  other.ready = false;
  rig.registers->set_queue(0, other);
  EXPECT_EQ(test::bytes_of(*rig.device), before);
  EXPECT_EQ(rig.registers->read(Register::queue_ready), 1u);
}

TEST(Mmio, QueueRegistersBeforeFeaturesOkAreIgnored) {
  BlockRig rig;
  rig.registers->set_status(kAcknowledge);
  rig.registers->set_queue(0, rig.driver().geometry());
  EXPECT_EQ(rig.registers->read(Register::queue_ready), 0u);
  EXPECT_TRUE(rig.device->validate(rig.device->save()));
}

TEST(Mmio, QueueSelectOutOfRangeReadsZeroAndWritesNothing) {  // G15
  BlockRig rig;
  rig.registers->negotiate(rig.registers->offered());
  const u32 selects[] = {1, 16, 0x7fffffff, 0xffffffff};
  for (const u32 select : selects) {
    rig.registers->set_queue(select, rig.driver().geometry());
    EXPECT_EQ(rig.registers->read(Register::queue_size_max), 0u);
    EXPECT_EQ(rig.registers->read(Register::queue_ready), 0u);
  }
  EXPECT_FALSE(rig.device->save().queues[0].ready);
}

TEST(Mmio, NotifyWakesTheNamedQueueOnly) {  // G16
  BlockRig rig({.queue_count = 2});
  rig.start();
  rig.registers->write(Register::queue_notify, 1);
  EXPECT_EQ(rig.kicker.take(), (std::set<u32>{1}));
  rig.registers->write(Register::queue_notify, 2);
  rig.registers->write(Register::queue_notify, 0xffffffff);
  EXPECT_TRUE(rig.kicker.take().empty());
}

TEST(Mmio, AccessesOfTheWrongWidthReadZeroAndWriteNothing) {  // G24
  BlockRig rig;
  rig.start();
  const u32 before = rig.status();
  for (const u64 width : {1u, 2u, 8u}) {
    for (u64 offset = 0; offset + width <= 0x100; ++offset) {
      std::vector<u8> data(width, 0xff);
      rig.device->read(offset, data);
      EXPECT_EQ(data, std::vector<u8>(width, 0)) << offset;
      rig.device->write(offset, data);
    }
  }
  for (u64 offset = 1; offset < 0x100; offset += 4) {
    std::vector<u8> data(4, 0xff);
    rig.device->read(offset, data);
    EXPECT_EQ(data, std::vector<u8>(4, 0));
    rig.device->write(offset, std::vector<u8>(4, 0));
  }
  EXPECT_EQ(rig.status(), before);
}

TEST(Mmio, ConfigurationReadsPastTheStructAreZero) {  // G25
  BlockRig rig;
  const u64 end = kConfigOffset + sizeof(BlockConfig);
  for (u64 offset = kConfigOffset; offset + 8 <= MmioDevice::kWindowBytes; ++offset) {
    for (const u64 width : {1u, 2u, 4u, 8u}) {
      std::vector<u8> data(width, 0xff);
      rig.device->read(offset, data);
      for (u64 i = offset < end ? end - offset : 0; i < width; ++i) EXPECT_EQ(data[i], 0) << offset;
      rig.device->write(offset, std::vector<u8>(width, 0xff));
    }
  }
  u8 capacity[8];
  rig.device->read(kConfigOffset, capacity);
  le64 sectors;
  std::memcpy(&sectors, capacity, 8);
  EXPECT_EQ(sectors, BlockRig::kDiskBytes / 512);
}

TEST(Mmio, AcknowledgeTakesTheNamedInterruptsOnly) {  // G27
  BlockRig rig;
  rig.start();
  rig.request(0, 4, 0);
  rig.serve();
  rig.serve();
  EXPECT_EQ(rig.interrupts(), u32{kUsedBuffer});
  rig.registers->write(Register::interrupt_acknowledge, kConfigChange);
  EXPECT_EQ(rig.interrupts(), u32{kUsedBuffer});
  rig.registers->write(Register::interrupt_acknowledge, 0xffffffff);
  EXPECT_EQ(rig.interrupts(), 0u);
}

TEST(Mmio, ResetWaitsForRequestsInFlightAndForgetsThem) {  // G23, G32
  BlockRig rig;
  rig.disk.completion = test::Completion::held;
  rig.start();
  rig.request(0, 0, 0, {{BlockRig::kPayload, 4096, test::kWrite}});
  rig.serve();
  EXPECT_EQ(rig.disk.submitted, 1);
  rig.registers->write(Register::status, 0);
  EXPECT_EQ(rig.status(), 0u);
  EXPECT_EQ(rig.driver().used_index(), 0) << "a used element after reset";
  EXPECT_EQ(rig.irq.edges(), 0u);
  // Nothing is left that could write later.
  rig.fill(BlockRig::kPayload, 0x77, 4096);
  rig.fill(BlockRig::kStatus, 0x77, 1);
  rig.serve();
  rig.device->drain();
  EXPECT_EQ(rig.byte(BlockRig::kPayload), 0x77);
  EXPECT_EQ(rig.status_of(0), 0x77);
  // And it works again.
  rig.driver().restart();
  rig.disk.completion = test::Completion::at_poll;
  rig.start();
  EXPECT_EQ(rig.answer(0, 0, {{BlockRig::kPayload, 512, test::kWrite}}), 0);
}

TEST(Mmio, PausedQueueLeavesWorkInTheRingAndResumeTakesItUp) {
  BlockRig rig;
  rig.start();
  rig.device->pause();
  rig.request(0, 4, 0);
  rig.serve();
  EXPECT_EQ(rig.disk.submitted, 0);
  rig.device->drain();
  rig.device->resume();
  EXPECT_EQ(rig.kicker.take(), (std::set<u32>{0}));
  rig.serve();
  EXPECT_EQ(rig.disk.submitted, 1);
}

TEST(Mmio, DrainCompletesAndInterrupts) {
  BlockRig rig;
  rig.disk.completion = test::Completion::held;
  rig.start();
  rig.request(0, 4, 0);
  rig.serve();
  rig.device->pause();
  EXPECT_EQ(rig.driver().used_index(), 0);
  rig.device->drain();
  EXPECT_EQ(rig.driver().used_index(), 1);
  EXPECT_EQ(rig.irq.edges(), 1u);
  EXPECT_EQ(rig.interrupts(), u32{kUsedBuffer});
}

TEST(Mmio, RestoredUnacknowledgedInterruptIsRaisedAgain) {
  BlockRig rig, other;
  rig.start();
  rig.request(0, 4, 0);
  rig.serve();
  rig.serve();
  const MmioState state = rig.device->save();
  ASSERT_TRUE(other.device->restore(state));
  EXPECT_EQ(other.irq.edges(), 1u);
  EXPECT_EQ(other.interrupts(), u32{kUsedBuffer});
  rig.registers->write(Register::interrupt_acknowledge, 1);
  rig.irq.take_edges();
  ASSERT_TRUE(rig.device->restore(rig.device->save()));
  EXPECT_EQ(rig.irq.edges(), 0u);
}

TEST(Mmio, RestoreInTheMiddleOfSetUpGoesOnFromThere) {  // S28
  BlockRig rig, other;
  rig.registers->negotiate(rig.registers->offered());
  rig.registers->write(Register::queue_select, 0);
  rig.registers->write(Register::queue_size, 16);
  ASSERT_TRUE(other.device->restore(rig.device->save()));
  QueueState queue = other.driver().geometry();
  other.registers->write_address(Register::queue_descriptor_low, queue.descriptor_table);
  other.registers->write_address(Register::queue_driver_low, queue.avail_ring);
  other.registers->write_address(Register::queue_device_low, queue.used_ring);
  other.registers->write(Register::queue_ready, 1);
  other.registers->driver_ok();
  EXPECT_FALSE(other.needs_reset());
  EXPECT_EQ(other.answer(4, 0), 0);
}

TEST(Mmio, HostileStateIsRefused) {  // S17, S18, S19, S20
  BlockRig rig;
  rig.start();
  const MmioState good = rig.device->save();
  ASSERT_TRUE(rig.device->validate(good));
  const std::pair<const char*, void (*)(MmioState&)> cases[] = {
      {"another device type", [](MmioState& s) { s.device_id = 4; }},
      {"no queue", [](MmioState& s) { s.queues.clear(); }},
      {"one queue more", [](MmioState& s) { s.queues.resize(2); }},
      {"a feature not offered", [](MmioState& s) { s.driver_features |= u64{1} << 34; }},
      {"no VERSION_1", [](MmioState& s) { s.driver_features &= ~kFeatureVersion1; }},
      {"a status that skips a step", [](MmioState& s) { s.status &= ~u32{kDriver}; }},
      {"an unknown status bit", [](MmioState& s) { s.status |= 0x20; }},
      {"an unknown interrupt", [](MmioState& s) { s.interrupt_status = 4; }},
      {"queue size 0", [](MmioState& s) { s.queues[0].size = 0; }},
      {"queue size 65535", [](MmioState& s) { s.queues[0].size = 65535; }},
      {"ring misaligned", [](MmioState& s) { s.queues[0].used_ring += 1; }},
      {"ring in a larger memory", [](MmioState& s) { s.queues[0].avail_ring = u64{1} << 32; }},
      {"taken and neither completed nor held", [](MmioState& s) { s.queues[0].next_avail = 1; }},
      {"used ahead of avail", [](MmioState& s) { s.queues[0].next_used = 1; }},
      {"signalled far away", [](MmioState& s) { s.queues[0].signalled_used = 0x4000; }},
      {"held head outside",
       [](MmioState& s) { s.queues[0].held = {16}, s.queues[0].next_avail = 1; }},
      {"held heads doubled",
       [](MmioState& s) {
         s.queues[0].held = {2, 2}, s.queues[0].next_avail = 2;
       }},
      {"more held than taken", [](MmioState& s) { s.queues[0].held = {2}; }},
      {"a running queue that is not ready",
       [](MmioState& s) { s.queues[0].ready = false, s.queues[0].next_avail = 1; }},
  };
  for (const auto& [name, spoil] : cases) {
    MmioState bad = good;
    spoil(bad);
    EXPECT_FALSE(rig.device->validate(bad)) << name;
    const base::Bytes before = test::bytes_of(*rig.device);
    EXPECT_FALSE(rig.device->restore(bad)) << name;
    EXPECT_EQ(test::bytes_of(*rig.device), before) << name;
  }
}

TEST(Mmio, BlockKeepsTheStatefulContract) {
  BlockRig rig({.queue_count = 2}), fresh({.queue_count = 2}), built({.queue_count = 2});
  rig.start();
  rig.request(0, 4, 0);
  rig.serve();
  rig.serve();
  rig.disk.write_status = blockdev::BlockStatus::no_space;
  rig.request(1, 1, 8, {{BlockRig::kPayload, 512}});
  rig.serve();
  rig.serve();
  ASSERT_EQ(rig.device->save().queues[0].held.size(), 1u);
  rig.device->pause();
  rig.device->drain();
  test::check_stateful_contract(*rig.device, *fresh.device, [&] {
    rig.registers->write(Register::status, 0);
    rig.registers->set_status(kAcknowledge);
    rig.registers->write(Register::queue_select, 77);
  });
  test::check_reset_equals_fresh(*rig.device, *built.device);
}

TEST(Mmio, RngKeepsTheStatefulContract) {
  RngRig rig, fresh, built;
  rig.start();
  rig.driver().send(std::vector<test::Buffer>{{test::kData, 64, test::kWrite}});
  rig.serve();
  test::check_stateful_contract(*rig.device, *fresh.device, [&] { rig.registers->negotiate(0); });
  test::check_reset_equals_fresh(*rig.device, *built.device);
}

}  // namespace
}  // namespace devices::virtio
