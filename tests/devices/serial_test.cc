#include "devices/serial.h"

#include <gtest/gtest.h>

#include "tests/support/fake_devices.h"
#include "tests/support/stateful_contract.h"

namespace devices {
namespace {

constexpr u64 kData = 0, kIer = 1, kIir = 2, kFcr = 2, kLcr = 3, kMcr = 4, kLsr = 5, kMsr = 6,
              kScr = 7;

struct Rig {
  test::FakeIrqLine irq;
  test::FakeSink sink;
  Serial serial{irq, sink};

  u8 in(u64 offset) {
    u8 value = 0;
    serial.read(offset, {&value, 1});
    return value;
  }
  void out(u64 offset, u8 value) { serial.write(offset, {&value, 1}); }
  u64 send(std::string_view text) {
    return serial.receive({reinterpret_cast<const u8*>(text.data()), text.size()});
  }
};

TEST(Serial, WritesGoToTheSinkInOrder) {
  Rig rig;
  for (const char c : std::string("hello")) rig.out(kData, static_cast<u8>(c));
  EXPECT_EQ(rig.sink.text, "hello");
  EXPECT_EQ(rig.in(kLsr), 0x60);
}

// Another vCPU may answer the interrupt with the next byte.
TEST(Serial, ByteHasLeftBeforeTheInterruptComes) {
  struct Sink final : SerialSink {
    explicit Sink(const test::FakeIrqLine& line) : irq(line) {}
    void write(u8) override { was_high = irq.is_high(); }
    const test::FakeIrqLine& irq;
    bool was_high = true;
  };
  test::FakeIrqLine irq;
  Sink sink(irq);
  Serial serial(irq, sink);
  const auto out = [&](u64 offset, u8 value) { serial.write(offset, {&value, 1}); };
  out(kIer, 0x02);
  u8 identity = 0;
  serial.read(kIir, {&identity, 1});
  out(kData, 'x');
  EXPECT_FALSE(sink.was_high);
  EXPECT_TRUE(irq.is_high());
}

TEST(Serial, DivisorLatchHidesDataAndInterruptEnable) {
  Rig rig;
  rig.out(kIer, 0x05);
  rig.out(kLcr, 0x83);
  rig.out(kData, 0x0c);
  rig.out(kIer, 0x01);
  EXPECT_EQ(rig.in(kData), 0x0c);
  EXPECT_EQ(rig.in(kIer), 0x01);
  rig.out(kLcr, 0x03);
  EXPECT_EQ(rig.in(kIer), 0x05);
  EXPECT_EQ(rig.sink.text, "");
}

TEST(Serial, ScratchKeepsItsValueAndUnusedEnableBitsAreZero) {
  Rig rig;
  rig.out(kScr, 0xa5);
  EXPECT_EQ(rig.in(kScr), 0xa5);
  rig.out(kIer, 0xff);
  EXPECT_EQ(rig.in(kIer), 0x0f);
}

TEST(Serial, EnablingTransmitEmptyInterruptsAndReadingIdentityAcknowledges) {
  Rig rig;
  rig.out(kIer, 0x02);
  EXPECT_TRUE(rig.irq.is_high());
  EXPECT_EQ(rig.in(kIir), 0x02);
  EXPECT_FALSE(rig.irq.is_high());
  EXPECT_EQ(rig.in(kIir), 0x01);
  rig.out(kData, 'x');  // full and empty again
  EXPECT_TRUE(rig.irq.is_high());
  EXPECT_EQ(rig.in(kIir), 0x02);
  rig.out(kIer, 0x00);
  rig.out(kIer, 0x02);  // Linux's test for chips with a missing edge
  EXPECT_EQ(rig.in(kIir), 0x02);
}

TEST(Serial, ReadingIdentityForReceivedDataKeepsTransmitEmptyPending) {
  Rig rig;
  rig.out(kFcr, 0x01);
  rig.out(kIer, 0x03);
  rig.send("a");
  EXPECT_EQ(rig.in(kIir), 0xc4);
  EXPECT_EQ(rig.in(kData), 'a');
  EXPECT_EQ(rig.in(kIir), 0xc2);
  EXPECT_EQ(rig.in(kIir), 0xc1);
}

TEST(Serial, ReceiveTakesOneByteWithoutFifoAndSixteenWithIt) {
  Rig rig;
  EXPECT_EQ(rig.send("abc"), 1u);
  EXPECT_EQ(rig.send("bc"), 0u);
  EXPECT_EQ(rig.in(kData), 'a');
  EXPECT_EQ(rig.sink.rooms, 1);
  rig.out(kFcr, 0x01);
  EXPECT_EQ(rig.send("0123456789abcdefXYZ"), 16u);
  std::string read;
  while ((rig.in(kLsr)&1) != 0) read.push_back(static_cast<char>(rig.in(kData)));
  EXPECT_EQ(read, "0123456789abcdef");
  EXPECT_EQ(rig.sink.rooms, 2);
}

TEST(Serial, ReceivedDataInterruptStaysUntilTheFifoIsEmpty) {
  Rig rig;
  rig.out(kFcr, 0xc1);
  rig.out(kIer, 0x01);
  rig.send("ab");
  EXPECT_TRUE(rig.irq.is_high());
  rig.in(kData);
  EXPECT_TRUE(rig.irq.is_high());
  rig.in(kData);
  EXPECT_FALSE(rig.irq.is_high());
}

TEST(Serial, FifoResetDropsWhatWasReceived) {
  Rig rig;
  rig.out(kFcr, 0x01);
  rig.send("abc");
  rig.out(kFcr, 0x03);
  EXPECT_EQ(rig.in(kLsr)&1, 0);
  rig.send("abc");
  rig.out(kFcr, 0x00);  // switching the FIFOs resets them
  EXPECT_EQ(rig.in(kLsr)&1, 0);
}

TEST(Serial, LoopbackReturnsDataAndModemControl) {
  Rig rig;
  rig.out(kMcr, 0x1a);  // loop, OUT2, RTS: what Linux's autoconfig writes
  EXPECT_EQ(rig.in(kMsr)&0xf0, 0x90);
  rig.out(kData, 'q');
  EXPECT_EQ(rig.sink.text, "");
  EXPECT_EQ(rig.send("z"), 0u) << "the wire is cut";
  EXPECT_EQ(rig.in(kData), 'q');
  rig.out(kMcr, 0x00);
  EXPECT_EQ(rig.in(kMsr)&0xf0, 0xb0);
  EXPECT_EQ(rig.sink.rooms, 1);
}

TEST(Serial, LoopbackOverrunIsToldOnceWithItsInterrupt) {
  Rig rig;
  rig.out(kMcr, 0x10);
  rig.out(kIer, 0x04);
  rig.out(kData, 'a');
  rig.out(kData, 'b');
  EXPECT_EQ(rig.in(kIir), 0x06);
  EXPECT_EQ(rig.in(kLsr), 0x63);
  EXPECT_FALSE(rig.irq.is_high());
  EXPECT_EQ(rig.in(kLsr), 0x61);
  EXPECT_EQ(rig.in(kData), 'b');
}

TEST(Serial, ModemStatusInterruptEndsWithItsRead) {
  Rig rig;
  rig.out(kIer, 0x08);
  rig.out(kMcr, 0x10);
  EXPECT_TRUE(rig.irq.is_high());
  EXPECT_EQ(rig.in(kIir), 0x00);
  EXPECT_NE(rig.in(kMsr)&0x0f, 0);
  EXPECT_FALSE(rig.irq.is_high());
}

TEST(Serial, GarbageInEveryRegisterAtEveryWidthIsHarmless) {  // G42
  Rig rig;
  u32 random = 1;
  for (int i = 0; i < 20000; ++i) {
    random = random * 1664525 + 1013904223;
    u8 data[4] = {static_cast<u8>(random >> 8), static_cast<u8>(random >> 16), 0xff, 0};
    const u64 width = u64{1} << (random % 3);
    const u64 offset = (random >> 24) % 8 / width * width;
    if ((random & 0x80) != 0) {
      rig.serial.read(offset, {data, width});
    } else {
      rig.serial.write(offset, {data, width});
    }
    ASSERT_TRUE(rig.serial.validate(rig.serial.save()));
  }
}

// The guest has written a byte and waits for the interrupt that lets it send the next one.
TEST(Serial, RestoredInMidTransmissionInterruptsAgain) {
  Rig rig;
  rig.out(kFcr, 0x01);
  rig.out(kIer, 0x02);
  rig.in(kIir);
  rig.out(kData, 'a');
  const SerialState saved = rig.serial.save();

  Rig other;
  ASSERT_TRUE(other.serial.restore(saved));
  EXPECT_TRUE(other.irq.is_high());
  EXPECT_EQ(other.in(kIir), 0xc2);
  EXPECT_FALSE(other.irq.is_high());

  // In place: the abandoned timeline had acknowledged it.
  rig.in(kIir);
  EXPECT_FALSE(rig.irq.is_high());
  rig.irq.take_edges();
  ASSERT_TRUE(rig.serial.restore(saved));
  EXPECT_TRUE(rig.irq.is_high());
  EXPECT_EQ(rig.irq.take_edges(), 1u);
}

TEST(Serial, RestoreLowersALineTheSnapshotHadLow) {
  Rig rig;
  const SerialState quiet = rig.serial.save();
  rig.out(kIer, 0x02);
  EXPECT_TRUE(rig.irq.is_high());
  ASSERT_TRUE(rig.serial.restore(quiet));
  EXPECT_FALSE(rig.irq.is_high());
}

TEST(Serial, ARestoredPendingCauseMakesAnEdgeAlsoOnALineThatIsHigh) {
  Rig rig;
  rig.out(kIer, 0x02);
  const SerialState saved = rig.serial.save();
  rig.irq.take_edges();
  ASSERT_TRUE(rig.serial.restore(saved));
  EXPECT_EQ(rig.irq.take_edges(), 1u);
}

TEST(Serial, KeepsTheStatefulContract) {
  Rig rig, fresh, built;
  rig.out(kFcr, 0x41);
  rig.out(kIer, 0x07);
  rig.out(kLcr, 0x03);
  rig.out(kScr, 0x77);
  rig.send("typed");
  rig.out(kData, 'x');
  int round = 0;
  test::check_stateful_contract(rig.serial, fresh.serial, [&] {
    rig.out(kFcr, 0x01);
    rig.out(kLcr, 0x83);
    rig.out(kData, 0x01);
    rig.out(kScr, static_cast<u8>(++round));
    rig.out(kMcr, 0x1f);
    rig.in(kIir);
  });
  test::check_reset_equals_fresh(rig.serial, built.serial);
  EXPECT_FALSE(rig.irq.is_high());
}

}  // namespace
}  // namespace devices
