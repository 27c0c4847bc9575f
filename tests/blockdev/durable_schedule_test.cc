// The rules of concurrency, each by the schedule that breaks who ignores it, and then by a great
// many schedules that nobody thought of. Everything runs on one thread, in the order of
// SimulatedHost.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "tests/blockdev/support/schedule.h"
#include "tests/blockdev/support/soak.h"

namespace blockdev::test {
namespace {

constexpr u64 kCluster = 4096;
constexpr u64 kSectors = kCluster / kSectorBytes;  // of a cluster

bool is_data_write(const IoOperation& operation) {
  if (operation.kind != IoKind::write || operation.buffers.empty()) return false;
  // Stamps of requests are small numbers; tables begin otherwise.
  u64 length = 0;
  for (const iovec& buffer : operation.buffers) length += buffer.iov_len;
  return length >= kSectorBytes && stamp_of({static_cast<const u8*>(operation.buffers[0].iov_base),
                                             kSectorBytes}) != kForeignStamp;
}

class DurableSchedule : public testing::Test {
 protected:
  void SetUp() override { SKIP_WITHOUT_QEMU_DAEMON(); }
};

// C1: two allocations of one cluster would each bring the other's half from below.
TEST_F(DurableSchedule, C1_OneAllocationInFlightForEachCluster) {
  Schedule run(small_shape());
  run.host().hold(is_data_write);
  run.write(0, 0, 3, 100);
  run.write(1, 4, 3, 200);
  run.host().settle();
  EXPECT_EQ(run.host().held_count(), 1u) << "the second waits for the first";
  run.close_and_check();
}

// C2: the defect that QEMU had from 2011 to 2026.
TEST_F(DurableSchedule, C2_ADiscardWaitsForTheAllocationItMeets) {
  Schedule run(small_shape());
  run.host().hold(is_data_write);
  run.write(0, kSectors, kSectors, 100);
  run.host().settle();
  run.discard(1, kSectors, kSectors);
  run.host().settle();
  EXPECT_EQ(run.in_flight(1), 1u) << "done before the write that it met";
  run.finish();
  run.flush(0);
  run.write(0, 5 * kSectors, kSectors, 300);
  run.close_and_check();
  run.expect_crash_keeps_the_promise();
}

// C3: a hole punched late would take what was written to the cluster since.
TEST_F(DurableSchedule, C3_AWriteDoesNotMeetThePunchBeforeIt) {
  Schedule run(small_shape());
  run.write(0, 0, 2 * kSectors, 100);
  run.flush(0);
  run.finish();
  run.host().hold([](const IoOperation& operation) { return operation.kind == IoKind::punch; });
  run.discard(0, 0, 2 * kSectors);
  run.host().settle();
  EXPECT_EQ(run.in_flight(0), 1u) << "a discard ends before its hole is there";
  run.write(1, 0, kSectors, 200);
  run.write(1, 4 * kSectors, kSectors, 300);
  run.host().settle();
  run.close_and_check();
}

// C4: a read that has found its cluster ends before another's data can be there.
TEST_F(DurableSchedule, C4_AReadKeepsItsClusterFromBeingUsedAnew) {
  ImageShape shape = small_shape();
  shape.filled = 1;
  shape.has_compressed = true;
  Schedule run(shape);
  for (u64 cluster = 0; cluster < 8; ++cluster) run.read(0, cluster * kSectors, kSectors);
  run.host().hold_waiting();
  for (u64 round = 0; round < 3; ++round) {
    run.discard(1, 0, 8 * kSectors);
    run.flush(1);
    run.write(1, round * 8 * kSectors, 8 * kSectors, 1000 + round * 100);
    run.flush(1);
    (void)run.host().run_until([&] { return run.in_flight(1) == 0; });
  }
  run.close_and_check();
}

// C4: who decompresses looks again whether the bytes were still the cluster's.
TEST_F(DurableSchedule, C4_ACompressedClusterThatIsFreedWhileItIsReadIsReadAnew) {
  ImageShape shape = small_shape();
  shape.filled = 1;
  shape.has_compressed = true;
  Schedule run(shape);
  run.rewrite_under_reader();
  run.close_and_check();
}

// C4b: a flush on another queue must not make a mapping durable whose data is still in flight, and
// a reader must not see it.
TEST_F(DurableSchedule, C4b_AMappingAppearsAfterItsData) {
  Schedule run(small_shape());
  run.write(1, 8 * kSectors, kSectors, 500);  // so that the flush has a table to write
  run.finish();
  run.host().hold([](const IoOperation& operation) { return is_data_write(operation); });
  run.write(0, 9 * kSectors, kSectors, 100);
  run.host().settle();
  ASSERT_EQ(run.host().held_count(), 1u);
  run.read(1, 9 * kSectors, kSectors);
  run.flush(1);
  ASSERT_TRUE(run.host().run_until([&] { return run.in_flight(1) == 0; }))
      << "a flush waits for a write that it does not cover";
  run.expect_crash_keeps_the_promise();
  run.close_and_check();
}

// C5: many flushes at once are one, and each covers what was done before it.
TEST_F(DurableSchedule, C5_FlushesOfManyQueuesAreOne) {
  Schedule run(small_shape());
  run.write(0, 0, kSectors, 100);
  run.write(1, kSectors, kSectors, 200);
  run.finish();
  const auto syncs = [&] {
    u64 count = 0;
    for (const LoggedOperation& operation : run.log().operations()) {
      if (operation.kind == IoKind::sync) ++count;
    }
    return count;
  };
  const u64 before = syncs();
  for (u64 i = 0; i < 16; ++i) run.flush(i % 2);
  run.finish();
  EXPECT_LE(syncs() - before, 4u)
      << "16 flushes: two barriers each for the running one and one more";
  run.close_and_check();
  run.expect_crash_keeps_the_promise();
}

// This process's descriptors of a file.
std::vector<int> descriptors_of(const std::string& path) {
  const std::string real = std::filesystem::canonical(path);
  std::vector<int> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    if (std::filesystem::read_symlink(entry.path(), error) != real) continue;
    found.push_back(std::stoi(entry.path().filename()));
  }
  return found;
}

// C6: one queue's I/O must not go where another's has just moved the position of the file.
TEST_F(DurableSchedule, C6_ThePositionOfTheFileIsNeverUsed) {
  constexpr off_t kElsewhere = 12'345;
  Schedule run(small_shape());
  const std::vector<int> descriptors = descriptors_of(run.path());
  ASSERT_FALSE(descriptors.empty());
  for (const int fd : descriptors) ASSERT_EQ(::lseek(fd, kElsewhere, SEEK_SET), kElsewhere);
  for (u64 round = 0; round < 8; ++round) {
    run.write(round % 2, round * kSectors + 3, 2 * kSectors, 1000 + round * 100);
    run.read(1 - round % 2, 0, 4 * kSectors);
    run.discard(1 - round % 2, 40 * kSectors, kSectors);
    run.flush(round % 2);
    run.finish();
  }
  for (const int fd : descriptors) EXPECT_EQ(::lseek(fd, 0, SEEK_CUR), kElsewhere);
  run.close_and_check();
}

// C7: what is written, discarded and flushed again and again does not make the file grow.
TEST_F(DurableSchedule, C7_RewritingDoesNotGrowTheFile) {
  ImageShape shape = small_shape();
  shape.filled = 1;
  shape.has_compressed = true;
  Schedule run(shape);
  u64 allocated = 0;
  for (u64 round = 0; round < 30; ++round) {
    run.write(round % 2, 0, 64 * kSectors, 1000 + round * 1000);
    run.flush(0);
    run.finish();
    run.discard(1, 0, 64 * kSectors);
    run.flush(0);
    run.finish();
    u64 end = 0;  // behind the last byte that was ever written
    for (const LoggedOperation& operation : run.log().operations()) {
      end = std::max<u64>(end, operation.offset + operation.data.size());
    }
    if (round == 1) allocated = end;
    if (round > 1) {
      ASSERT_LE(end, allocated + 4 * kCluster) << "round " << round;
    }
  }
  run.close_and_check();
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr u64 kSchedules = 30;
#else
constexpr u64 kSchedules = 80;
#endif

// All of them at once, by chance.
TEST_F(DurableSchedule, RandomSchedulesKeepEveryPromise) {
  const Soak soak;
  u64 schedules = 0;
  for (u64 seed = soak.first_seed(); !HasFailure(); ++seed) {
    if (soak.is_long() ? soak.is_over() : schedules == kSchedules) break;
    ++schedules;
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Schedule run(schedule_shape(seed), seed);
    run.play_random(120);
    if (HasFatalFailure()) return;
    if (seed % 10 == 0) run.expect_crash_keeps_the_promise();
    run.close_and_check();
  }
}

}  // namespace
}  // namespace blockdev::test
