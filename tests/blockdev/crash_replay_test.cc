// The rig itself: what a crash may leave of a known log, and what a history allows.

#include "tests/blockdev/support/crash_replay.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "tests/blockdev/support/stamps.h"

namespace blockdev::test {
namespace {

// A file as letters, one for each sector; '.' is zeros.
std::string letters(const SparseImage& image) {
  ImageSlot slot = ImageSlot::in_memory();
  slot.hold(image);
  std::string text;
  for (u64 at = 0; at + 512 <= image.size_bytes(); at += 512) {
    u8 byte = 0;
    EXPECT_TRUE(base::read_exactly(slot.fd(), {&byte, 1}, at));
    text.push_back(byte == 0 ? '.' : static_cast<char>(byte));
  }
  return text;
}

class LogBuilder final {
 public:
  LogBuilder& write(u64 sector, const std::string& text, u64 submitted, u64 done) {
    LoggedOperation operation{.kind = IoKind::write, .offset = sector * 512};
    for (const char letter : text) operation.data.insert(operation.data.end(), 512, u8(letter));
    return add(std::move(operation), submitted, done);
  }
  LogBuilder& sync(u64 submitted, u64 done) { return add({.kind = IoKind::sync}, submitted, done); }
  LogBuilder& truncate(u64 sectors, u64 submitted, u64 done) {
    return add({.kind = IoKind::truncate, .offset = sectors * 512}, submitted, done);
  }
  LogBuilder& punch(u64 sector, u64 count, u64 submitted, u64 done) {
    return add({.kind = IoKind::punch, .offset = sector * 512, .length = count * 512}, submitted,
               done);
  }
  // Every different image from `start`, as letters.
  std::set<std::string> images(const std::string& start) const {
    SparseImage image;
    for (u64 i = 0; i < start.size(); ++i) {
      if (start[i] == '.') {
        image.truncate((i + 1) * 512);
      } else {
        image.write(i * 512, std::vector<u8>(512, u8(start[i])));
      }
    }
    std::set<std::string> found;
    CrashReplay replay(image, log_);
    replay.run(
        {.random_subsets = 40, .torn_subsets = 40}, {}, [](u64) { return 0; },
        [&](const SparseImage& crashed, u64, CrashReplay::Seen) {
          EXPECT_TRUE(found.insert(letters(crashed)).second) << "judged twice";
        });
    return found;
  }

 private:
  LogBuilder& add(LoggedOperation operation, u64 submitted, u64 done) {
    operation.submitted = submitted;
    operation.done = done;
    log_.push_back(std::move(operation));
    return *this;
  }
  std::vector<LoggedOperation> log_;
};

using Images = std::set<std::string>;

TEST(CrashReplayRig, WritesWithoutABarrierAreThereInAnySubsetAndTorn) {
  EXPECT_EQ(LogBuilder().write(0, "ab", 1, 2).write(2, "c", 3, 4).images("xyz"),
            (Images{"xyz", "abz", "ayz", "xbz", "abc", "xyc", "ayc", "xbc"}));
}

TEST(CrashReplayRig, ABarrierKeepsWhatEndedBeforeItBegan) {
  EXPECT_EQ(LogBuilder().write(0, "a", 1, 2).sync(3, 4).write(1, "b", 5, 6).images("xy"),
            (Images{"xy", "ay", "ab"}));
  // The first write ends while the sync runs: it may still be lost.
  EXPECT_EQ(LogBuilder().write(0, "a", 1, 4).sync(3, 5).write(1, "b", 6, 7).images("xy"),
            (Images{"xy", "ay", "ab", "xb"}));
}

TEST(CrashReplayRig, LaterWritesLieOverEarlierOnes) {
  EXPECT_EQ(LogBuilder().write(0, "a", 1, 2).write(0, "b", 3, 4).images("x"),
            (Images{"x", "a", "b"}));
}

TEST(CrashReplayRig, LengthsAndHolesAreLostAsWritesAre) {
  EXPECT_EQ(LogBuilder().truncate(2, 1, 2).write(1, "a", 3, 4).images("x"),
            (Images{"x", "x.", "xa"}));
  EXPECT_EQ(LogBuilder().punch(0, 1, 1, 2).write(0, "a", 3, 4).images("xy"),
            (Images{"xy", ".y", "ay"}));
}

TEST(SectorHistory, OverlappingWritesMayEndAsEither) {
  SectorHistory history(1, HistoryKeeping::all);
  const u32 a = history.begin(1);
  history.change(a, 0, 10, Certainty::certain);
  const u32 b = history.begin(2);
  history.change(b, 0, 20, Certainty::certain);
  EXPECT_FALSE(history.read(0, 0, 3, 4)) << "both are still in flight";
  history.end(a, 5, Certainty::certain);
  history.end(b, 6, Certainty::certain);
  EXPECT_TRUE(history.read(0, 0, 7, 8)) << "both are done";
  EXPECT_FALSE(history.read(0, 10, 9, 10));
  EXPECT_TRUE(history.read(0, 20, 11, 12)) << "it was seen to be the other";
  EXPECT_FALSE(history.read(0, 10, 13, 14));
}

TEST(SectorHistory, AFailedWriteIsOldOrNewButOnlyOne) {
  SectorHistory history(1, HistoryKeeping::all);
  const u32 a = history.begin(1);
  history.change(a, 0, 10, Certainty::certain);
  history.end(a, 2, Certainty::uncertain);
  EXPECT_FALSE(history.only_value(0));
  EXPECT_FALSE(history.read(0, 0, 3, 4));
  EXPECT_TRUE(history.read(0, 10, 5, 6));
  EXPECT_EQ(history.only_value(0), 0u);
}

TEST(SectorHistory, ACrashKeepsWhatWasFlushedAndAnythingLater) {
  SectorHistory history(1, HistoryKeeping::all);
  const auto write = [&](Stamp stamp, u64 submitted, u64 done) {
    const u32 request = history.begin(submitted);
    history.change(request, 0, stamp, Certainty::certain);
    history.end(request, done, Certainty::certain);
  };
  write(10, 1, 2);
  history.flushed(3, 6);
  write(20, 4, 5);
  write(30, 8, 9);
  EXPECT_FALSE(history.after_crash(0, 0, 3)) << "the flush has not ended";
  EXPECT_TRUE(history.after_crash(0, 0, 6));
  EXPECT_FALSE(history.after_crash(0, 10, 7));
  EXPECT_FALSE(history.after_crash(0, 20, 7));
  EXPECT_TRUE(history.after_crash(0, 30, 7)) << "not written yet";
  EXPECT_FALSE(history.after_crash(0, 30, 8));
}

}  // namespace
}  // namespace blockdev::test
