// Threads, real rings and a real executor: what the schedules of one thread cannot show. TSan runs
// this; the process that is killed runs the same engine as a VM's.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "tests/blockdev/support/crash_judge.h"
#include "tests/blockdev/support/durable_image.h"
#include "tests/blockdev/support/model_client.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/random_requests.h"
#include "tests/blockdev/support/soak.h"

namespace blockdev::test {
namespace {

constexpr u64 kThreads = 4;

// Each thread has two sectors of every 4 KiB to itself, so that all meet in each cluster and still
// each can be judged alone; and, for discards, some clusters of its own at the end.
void stress(BlockBackend& disk, const DurableImage& image, u64 thread, u32 requests,
            Timeline& timeline, std::vector<std::string>& violations) {
  SectorHistory history(image.shape().sector_count(), HistoryKeeping::present);
  image.tell(history);
  ModelClient client(disk, history, timeline);
  std::mt19937_64 random(thread + 1);
  const u64 shared_groups = image.shape().sector_count() / 8 / 2;
  const u64 own_first = image.shape().sector_count() / 2;
  const u64 own_count = image.shape().sector_count() / 2 / kThreads / 32 * 32;
  Stamp stamp = (thread + 1) << 40;
  for (u32 i = 0; i < requests; ++i) {
    ModelClient::Request request;
    const u64 dice = random() % 20;
    if (dice < 14) {
      request.op = dice < 8 ? BlockOp::write : dice < 10 ? BlockOp::write_zeroes : BlockOp::read;
      request.unmap = dice % 2 == 0 ? Unmap::yes : Unmap::no;
      request.first_sector = random() % shared_groups * 8 + thread * 2;
      request.sector_count = 1 + random() % 2;
    } else if (dice < 19) {
      constexpr BlockOp kOps[] = {BlockOp::discard, BlockOp::write, BlockOp::read};
      request.op = kOps[random() % 3];
      const u64 first = random() % own_count;
      request.first_sector = own_first + thread * own_count + first;
      request.sector_count = 1 + random() % std::min<u64>(100, own_count - first);
    } else {
      request.op = BlockOp::flush;
    }
    client.start(request, stamp);
    stamp += request.sector_count;
    while (client.in_flight_count() >= 8) client.poll();
    if (random() % 4 == 0) client.poll();
  }
  client.drain();
  for (u64 sector = 0; sector < image.shape().sector_count(); ++sector) {
    const u64 group = sector % 8 / 2;
    const bool is_own = sector < own_first ? group == thread
                                           : sector >= own_first + thread * own_count &&
                                                 sector < own_first + (thread + 1) * own_count;
    if (is_own) client.run({.op = BlockOp::read, .first_sector = sector, .sector_count = 1});
  }
  violations = client.violations();
  if (client.failed_count() != 0) violations.push_back("requests failed");
}

class DurableStress : public testing::TestWithParam<std::pair<const char*, ImageShape>> {};

TEST_P(DurableStress, QueuesOfManyThreadsMeetInEveryCluster) {
  SKIP_WITHOUT_QEMU_DAEMON();
  const TempDir dir("/dev/shm");
  QemuDaemon daemon(dir.root());
  const DurableImage image(dir.root(), GetParam().second, daemon, 3);
  Timeline timeline;
  std::array<std::vector<std::string>, kThreads> violations;
  {
    const auto disk = open_durable(image.chain(), {}).value();
    std::vector<std::thread> threads;
    for (u64 thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&, thread] {
        stress(*disk->backend, image, thread, 1500, timeline, violations[thread]);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  for (const auto& some : violations) EXPECT_EQ(some, std::vector<std::string>{});
  if (GetParam().second.format == ImageFormat::qcow2) {
    const QemuVerdict verdict = qemu_check(image.path());
    EXPECT_EQ(verdict.status, 0) << verdict.output;
  }
}

constexpr u64 kSize = 2 * base::kMiB;
const std::pair<const char*, ImageShape> kShapes[] = {
    {"raw", {.format = ImageFormat::raw, .cluster_bits = 12, .size_bytes = kSize, .filled = 0.3}},
    {"small_clusters", {.cluster_bits = 9, .size_bytes = kSize, .filled = 0.3}},
    {"overlay",
     {.cluster_bits = 16,
      .size_bytes = 2 * kSize,
      .below = {BelowKind::qcow2},
      .filled = 0.3,
      .has_compressed = true}},
    {"extended",
     {.cluster_bits = 17,
      .is_extended = true,
      .size_bytes = 4 * kSize,
      .below = {BelowKind::raw}}}};
INSTANTIATE_TEST_SUITE_P(Shapes, DurableStress, testing::ValuesIn(kShapes),
                         [](const auto& test) { return std::string(test.param.first); });

// --- kill -9 ---------------------------------------------------------------------------------

// How far the child has come, in memory that survives it.
struct Progress {
  std::atomic<u64> submitted;
  std::atomic<u64> done;
};

ImageShape killed_shape(u64 seed) {
  ImageShape shape{
      .cluster_bits = seed % 2 == 0 ? 9u : 16u, .size_bytes = base::kMiB, .filled = 0.2};
  if (shape.cluster_bits == 16) shape.size_bytes *= 4;
  if (seed % 3 == 0) shape.below = {BelowKind::raw};
  return shape;
}

RandomRequests killed_requests(const ImageShape& shape, u64 seed) {
  return {seed,
          shape.sector_count(),
          shape.cluster_bytes(),
          shape.cluster_bytes(),
          {.writes = 60, .zeroes = 10, .discards = 10, .flushes = 10}};
}

[[noreturn]] void run_until_killed(const DurableImage& image, u64 seed, Progress& progress) {
  SectorHistory history(image.shape().sector_count(), HistoryKeeping::present);
  image.tell(history);
  Timeline timeline;
  const auto disk = open_durable(image.chain(), {}).value();
  ModelClient client(*disk->backend, history, timeline);
  RandomRequests requests = killed_requests(image.shape(), seed);
  for (Stamp stamp = 1;; stamp += 4096) {
    const ModelClient::Request request = requests.next();
    ++progress.submitted;
    if (client.run(request, stamp) != BlockStatus::ok) ::_exit(1);
    ++progress.done;
  }
}

TEST(DurableKill, AProcessKilledAtAnyMomentLeavesAConsistentImage) {
  SKIP_WITHOUT_QEMU_DAEMON();
  const TempDir dir;
  QemuDaemon daemon(dir.root());
  auto* const progress = static_cast<Progress*>(
      ::mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const Soak soak;
  u64 requests_seen = 0;
  for (u64 seed = soak.first_seed(); !HasFailure(); ++seed) {
    if (soak.is_long() ? soak.is_over() : seed == 25) break;
    SCOPED_TRACE(fmt::format("seed {}", seed));
    const ImageShape shape = killed_shape(seed);
    const DurableImage image(dir.root(), shape, daemon, seed);
    progress->submitted = 0;
    progress->done = 0;
    const pid_t child = ::fork();
    if (child == 0) run_until_killed(image, seed, *progress);
    while (progress->done == 0) ::usleep(200);
    ::usleep(static_cast<u32>(seed * 7919 % 60'000));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself";
    // What it had asked for, again.
    SectorHistory history(shape.sector_count(), HistoryKeeping::all);
    image.tell(history);
    RandomRequests requests = killed_requests(shape, seed);
    u64 time = 0;
    for (u64 i = 0; i < progress->submitted; ++i) {
      const ModelClient::Request request = requests.next();
      const bool is_done = i < progress->done;
      const u64 submitted = ++time;
      if (request.op == BlockOp::flush && is_done) history.flushed(submitted, ++time);
      if (request.op == BlockOp::flush || request.op == BlockOp::read) continue;
      const u32 change = history.begin(submitted);
      for (u64 k = 0; k < request.sector_count; ++k) {
        const Stamp stamp = request.op == BlockOp::write ? 1 + i * 4096 + k : kZeroStamp;
        history.change(change, request.first_sector + k, stamp,
                       request.op == BlockOp::discard ? Certainty::uncertain : Certainty::certain);
      }
      if (is_done) history.end(change, ++time, Certainty::certain);
    }
    requests_seen += progress->done;
    CrashJudge judge(history, shape.format, image.lower_layers(), dir.root());
    const auto left = SparseImage::read(base::open_file(image.path(), O_RDONLY).value());
    EXPECT_EQ(judge.judge(left, ++time), std::nullopt);
    EXPECT_EQ(judge.judge_by_qemu(left), std::nullopt);
    // And it can be opened and written again.
    const auto disk = open_durable(image.chain(), {});
    ASSERT_TRUE(disk) << disk.error().message();
  }
  EXPECT_GT(requests_seen, 100u);
  ::munmap(progress, sizeof(Progress));
}

}  // namespace
}  // namespace blockdev::test
