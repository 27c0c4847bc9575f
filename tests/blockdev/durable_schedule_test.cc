// The rules of concurrency, each by the schedule that breaks who ignores it, and then by a great
// many schedules that nobody thought of. Everything runs on one thread, in the order of
// SimulatedHost.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "blockdev/executor.h"
#include "tests/blockdev/support/crash_judge.h"
#include "tests/blockdev/support/crash_replay.h"
#include "tests/blockdev/support/durable_image.h"
#include "tests/blockdev/support/io_log.h"
#include "tests/blockdev/support/model_client.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/random_requests.h"
#include "tests/blockdev/support/simulated_host.h"
#include "tests/blockdev/support/soak.h"

namespace blockdev::test {
namespace {

constexpr u64 kCluster = 4096;
constexpr u64 kSectors = kCluster / kSectorBytes;  // of a cluster

ImageShape small_shape() {
  return {.cluster_bits = 12, .size_bytes = 64 * kCluster, .below = {BelowKind::raw}};
}

// A disk on a SimulatedHost with two clients, each with a queue of its own.
class Schedule {
 public:
  explicit Schedule(const ImageShape& shape, u64 seed = 1)
      : shape_(shape),
        daemon_(dir_.root()),
        image_(dir_.root(), shape, daemon_, seed),
        host_(seed),
        log_(timeline_),
        history_(shape.sector_count(), HistoryKeeping::all) {
    image_.tell(history_);
    start_ = read_image();
    DiskOptions options;
    options.make_engine = recording_engines(host_.engines(), log_);
    options.executor = host_.executor();
    disk_ = open_durable(image_.chain(), options).value();
    for (auto& client : clients_) {
      client = std::make_unique<ModelClient>(*disk_->backend, history_, timeline_);
      if (shape.has_compressed) client->set_discard_granularity(shape.cluster_bytes());
      host_.add_actor([&client] {
        if (client == nullptr) return false;  // closed
        const u32 before = client->in_flight_count();
        client->poll();
        return client->in_flight_count() != before;
      });
    }
  }

  SimulatedHost& host() { return host_; }
  ModelClient& client(u64 index) { return *clients_[index]; }
  SectorHistory& history() { return history_; }

  void write(u64 client, u64 sector, u64 count, Stamp stamp) {
    clients_[client]->start({.op = BlockOp::write, .first_sector = sector, .sector_count = count},
                            stamp);
  }
  void discard(u64 client, u64 sector, u64 count) {
    clients_[client]->start(
        {.op = BlockOp::discard, .first_sector = sector, .sector_count = count});
  }
  void read(u64 client, u64 sector, u64 count) {
    clients_[client]->start({.op = BlockOp::read, .first_sector = sector, .sector_count = count});
  }
  void flush(u64 client) { clients_[client]->start({.op = BlockOp::flush}); }
  u32 in_flight(u64 client) const { return clients_[client]->in_flight_count(); }
  // Of both clients, everything.
  void finish() {
    host_.release();
    ASSERT_TRUE(host_.run_until([&] { return in_flight(0) + in_flight(1) == 0; }))
        << "stuck with " << in_flight(0) << " and " << in_flight(1) << " requests in flight";
  }

  SparseImage read_image() const {
    return SparseImage::read(base::open_file(image_.path(), O_RDONLY).value());
  }
  // A crash now, with all that was given to the host, and with only what is durable.
  void expect_crash_keeps_the_promise() {
    CrashReplay replay(start_, log_.operations());
    CrashJudge judge(history_, shape_.format, image_.lower_layers(), dir_.root());
    replay.run(
        {.random_subsets = 2, .torn_subsets = 1}, history_.flush_ends(),
        [&](u64 time) { return history_.promise_at(time); },
        [&](const SparseImage& crashed, u64 time, CrashReplay::Seen) {
          const auto violation = judge.judge(crashed, time);
          EXPECT_EQ(violation, std::nullopt) << *violation;
        });
  }
  // Reads all, closes, and has the image checked: no corruption, no leak.
  void close_and_check() {
    finish();
    for (u64 at = 0; at < shape_.sector_count(); at += kSectors) {
      read(0, at, std::min(kSectors, shape_.sector_count() - at));
      finish();
    }
    for (auto& client : clients_) {
      for (const std::string& violation : client->violations()) ADD_FAILURE() << violation;
      client.reset();
    }
    disk_.reset();
    const QemuVerdict verdict = qemu_check(image_.path());
    EXPECT_EQ(verdict.status, 0) << verdict.output;
    CrashJudge judge(history_, shape_.format, image_.lower_layers(), dir_.root());
    const auto violation = judge.judge(read_image(), timeline_.next());
    EXPECT_EQ(violation, std::nullopt) << *violation;
  }
  const IoLog& log() const { return log_; }
  const std::string& path() const { return image_.path(); }

 private:
  ImageShape shape_;
  TempDir dir_{"/dev/shm"};
  QemuDaemon daemon_;
  DurableImage image_;
  SimulatedHost host_;
  Timeline timeline_;
  IoLog log_;
  SectorHistory history_;
  SparseImage start_;
  std::unique_ptr<Disk> disk_;
  std::array<std::unique_ptr<ModelClient>, 2> clients_;
};

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

// All of them at once, by chance.
TEST_F(DurableSchedule, RandomSchedulesKeepEveryPromise) {
  const Soak soak;
  u64 schedules = 0;
  for (u64 seed = soak.first_seed(); !HasFailure(); ++seed) {
    if (soak.is_long() ? soak.is_over() : schedules == 80) break;
    ++schedules;
    ImageShape shape = small_shape();
    shape.is_extended = seed % 3 == 0;
    shape.cluster_bits = shape.is_extended ? 14 : seed % 2 == 0 ? 9 : 12;
    shape.size_bytes = 40 * shape.cluster_bytes();
    shape.filled = 0.3;
    shape.has_compressed = seed % 4 == 1;
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Schedule run(shape, seed);
    RandomRequests requests(seed, shape.sector_count() / 4, shape.cluster_bytes(),
                            shape.cluster_bytes() / (shape.is_extended ? 32 : 1),
                            {.writes = 50, .zeroes = 15, .discards = 15, .flushes = 8});
    u64 left = 120;
    Stamp stamp = 1;
    for (u64 index = 0; index < 2; ++index) {
      run.host().add_actor([&, index] {
        if (left == 0 || run.in_flight(index) >= 6) return false;
        --left;
        const ModelClient::Request request = requests.next();
        run.client(index).start(request, stamp);
        stamp += request.sector_count;
        return true;
      });
    }
    ASSERT_TRUE(run.host().run_until(
        [&] { return left == 0 && run.in_flight(0) + run.in_flight(1) == 0; }));
    if (seed % 10 == 0) run.expect_crash_keeps_the_promise();
    run.close_and_check();
  }
}

}  // namespace
}  // namespace blockdev::test
