// One operation after the other of a scripted run fails: with EIO, with ENOSPC, after half of it,
// once or from then on. The image stays consistent, what was flushed stays, a sector whose request
// failed is old or new, and what succeeds later exposes nothing stale.

#include <fcntl.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "blockdev/executor.h"
#include "tests/blockdev/support/crash_judge.h"
#include "tests/blockdev/support/durable_image.h"
#include "tests/blockdev/support/faulty_engine.h"
#include "tests/blockdev/support/model_client.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/random_requests.h"
#include "tests/blockdev/support/test_engines.h"

namespace blockdev::test {
namespace {

struct ScriptedRun {
  u64 operations = 0;  // that the fault could have struck
  bool has_struck = false;
  u64 no_space = 0;  // requests that ended so
  std::vector<std::string> violations;
};

class FaultScript final {
 public:
  FaultScript(const ImageShape& shape, const std::string& directory, QemuDaemon& daemon)
      : shape_(shape), directory_(directory), image_(directory, shape, daemon, 5) {
    std::filesystem::copy_file(image_.path(), pristine());
  }

  // The same requests each time, on the same image. No fault: a run to count operations.
  ScriptedRun run(const FaultPlan::Fault* fault) {
    std::filesystem::copy_file(pristine(), image_.path(),
                               std::filesystem::copy_options::overwrite_existing);
    SectorHistory history(shape_.sector_count(), HistoryKeeping::all);
    image_.tell(history);
    Timeline timeline;
    ScriptedRun result;
    make_requests(fault, history, timeline, result);
    CrashJudge judge(history, shape_.format, image_.lower_layers(), directory_);
    const auto left = SparseImage::read(base::open_file(image_.path(), O_RDONLY).value());
    if (const auto violation = judge.judge(left, timeline.next())) {
      result.violations.push_back(*violation);
    }
    return result;
  }

 private:
  std::string pristine() const { return directory_ + "/pristine"; }

  void make_requests(const FaultPlan::Fault* fault, SectorHistory& history, Timeline& timeline,
                     ScriptedRun& result) {
    FaultPlan plan;
    DiskOptions options;
    options.executor = std::make_shared<ManualExecutor>();
    options.make_engine = faulty_engines(make_sync_engine, plan);
    auto disk = open_durable(image_.chain(), options);
    ASSERT_TRUE(disk) << disk.error().message();
    ModelClient client(*(*disk)->backend, history, timeline);
    if (fault != nullptr) plan.arm(*fault);
    RandomRequests requests(11, shape_.sector_count(), shape_.cluster_bytes(),
                            shape_.cluster_bytes() / (shape_.is_extended ? 32 : 1),
                            {.writes = 55, .zeroes = 14, .discards = 10, .flushes = 10});
    Stamp stamp = 1;
    const auto some_requests = [&](u32 count) {
      for (u32 i = 0; i < count; ++i) {
        const ModelClient::Request request = requests.next();
        if (client.run(request, stamp) == BlockStatus::no_space) ++result.no_space;
        stamp += request.sector_count;
      }
    };
    some_requests(60);
    plan.disarm();
    result.has_struck = plan.has_struck();
    result.operations = plan.seen_count();
    // The host has room again.
    some_requests(25);
    (void)client.run({.op = BlockOp::flush});
    for (u64 at = 0; at < shape_.sector_count(); at += 512) {
      client.run({.op = BlockOp::read,
                  .first_sector = at,
                  .sector_count = std::min<u64>(512, shape_.sector_count() - at)});
    }
    result.violations = client.violations();
  }

  ImageShape shape_;
  std::string directory_;
  DurableImage image_;
};

class Faults : public testing::TestWithParam<std::pair<const char*, ImageShape>> {};

TEST_P(Faults, AtEveryOperationLeaveAConsistentImage) {
  SKIP_WITHOUT_QEMU_DAEMON();
  const TempDir dir("/dev/shm");
  QemuDaemon daemon(dir.root());
  FaultScript script(GetParam().second, dir.root(), daemon);
  FaultPlan::Fault none{.index = ~u64{0}, .with_reads = true};
  const u64 operations = script.run(&none).operations;
  ASSERT_GT(operations, 50u);
  u64 runs = 0;
  u64 no_space = 0;
  for (u64 index = 0; index < operations; ++index) {
    for (const int error : {EIO, ENOSPC}) {
      for (const auto duration : {FaultDuration::once, FaultDuration::from_then_on}) {
        const FaultPlan::Fault fault{
            .index = index,
            .error_number = error,
            .extent = index % 2 == 0 ? FaultExtent::nothing : FaultExtent::half,
            .duration = duration,
            .with_reads = error == EIO};
        const ScriptedRun run = script.run(&fault);
        ++runs;
        no_space += run.no_space;
        if (error == EIO) {
          EXPECT_EQ(run.no_space, 0u) << "operation " << index;
        }
        ASSERT_EQ(run.violations, std::vector<std::string>{})
            << "operation " << index << ", " << (error == EIO ? "EIO" : "ENOSPC")
            << (duration == FaultDuration::once ? " once" : " from then on");
      }
    }
  }
  EXPECT_GT(no_space, 0u);
  std::cout << runs << " runs, " << operations << " operations\n";
}

const std::pair<const char*, ImageShape> kShapes[] = {
    {"raw", {.format = ImageFormat::raw, .cluster_bits = 12, .size_bytes = 256 * base::kKiB}},
    {"small_clusters",
     {.cluster_bits = 9, .refcount_bits = 64, .size_bytes = 300 * base::kKiB, .filled = 0.3}},
    {"overlay",
     {.cluster_bits = 12,
      .size_bytes = base::kMiB,
      .below = {BelowKind::qcow2, BelowKind::raw},
      .below_extra_bytes = -300 * 1024,
      .filled = 0.3,
      .has_compressed = true}},
    {"extended",
     {.cluster_bits = 14,
      .is_extended = true,
      .size_bytes = base::kMiB,
      .below = {BelowKind::qcow2},
      .filled = 0.3}}};
INSTANTIATE_TEST_SUITE_P(Shapes, Faults, testing::ValuesIn(kShapes),
                         [](const auto& test) { return std::string(test.param.first); });

}  // namespace
}  // namespace blockdev::test
