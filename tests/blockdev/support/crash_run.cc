#include "tests/blockdev/support/crash_run.h"

#include <fcntl.h>
#include <fmt/format.h>

#include "blockdev/executor.h"
#include "tests/blockdev/support/crash_judge.h"
#include "tests/blockdev/support/model_client.h"
#include "tests/blockdev/support/test_engines.h"

namespace blockdev::test {
namespace {

constexpr u64 kMaxViolations = 5;

void note(CrashOutcome& outcome, const std::string& violation) {
  if (outcome.violations.size() < kMaxViolations) outcome.violations.push_back(violation);
}

// Runs the requests; everything is done and closed at the end.
void make_requests(const CrashPlan& plan, const DurableImage& image, const DiskOptions& options,
                   SectorHistory& history, Timeline& timeline, CrashOutcome& outcome) {
  auto disk = open_durable(image.chain(), options);
  if (!disk) return note(outcome, "the disk cannot be opened: " + disk.error().message());
  RandomRequests requests(
      plan.seed, plan.shape.sector_count(), plan.shape.cluster_bytes(),
      plan.shape.is_extended ? plan.shape.cluster_bytes() / 32 : plan.shape.cluster_bytes(),
      plan.mix);
  requests.set_limit(plan.request_sectors);
  ModelClient client(*(*disk)->backend, history, timeline);
  Stamp stamp = 1;
  for (u32 i = 0; i < plan.requests; ++i) {
    const ModelClient::Request request = requests.next();
    client.start(request, stamp);
    stamp += request.sector_count;
    if (requests.random()() % 4 == 0) options.executor->run_one();
    while (client.in_flight_count() >= plan.depth) client.drain();
    if (requests.random()() % 2 == 0) client.poll();
  }
  client.drain();
  for (const std::string& violation : client.violations()) note(outcome, violation);
  if (client.failed_count() != 0) note(outcome, "requests failed");
}

}  // namespace

CrashOutcome run_crash_plan(const CrashPlan& plan, const std::string& directory,
                            QemuDaemon& daemon) {
  CrashOutcome outcome;
  const DurableImage image(directory, plan.shape, daemon, plan.seed);
  Timeline timeline;
  IoLog log(timeline);
  SectorHistory history(plan.shape.sector_count(), HistoryKeeping::all);
  image.tell(history);
  const auto read_image = [&] {
    return SparseImage::read(base::open_file(image.path(), O_RDONLY).value());
  };
  const SparseImage start = read_image();
  DiskOptions options;
  options.executor = std::make_shared<ManualExecutor>();
  options.make_engine = recording_engines(make_sync_engine, log);
  if (plan.wrap_engines) options.make_engine = plan.wrap_engines(options.make_engine);
  make_requests(plan, image, options, history, timeline, outcome);
  CrashReplay replay(start, log.operations());
  outcome.operations = log.operations().size();
  if (!(replay.final_image() == read_image())) {
    note(outcome, "the image was written without its engines");
  }
  CrashJudge judge(history, plan.shape.format, image.lower_layers(), directory);
  const auto judge_one = [&](const SparseImage& crashed, u64 time, CrashReplay::Seen seen) {
    if (outcome.violations.size() == kMaxViolations) return;
    if (const auto violation = judge.judge(crashed, time)) note(outcome, *violation);
    const bool is_new = seen == CrashReplay::Seen::new_image;
    if (plan.shape.format == ImageFormat::raw || !is_new || plan.qemu_share == 0) return;
    if (crashed.hash() % plan.qemu_share != 0) return;
    ++outcome.by_qemu;
    if (const auto violation = judge.judge_by_qemu(crashed)) note(outcome, *violation);
  };
  outcome.counts = replay.run(
      plan.crash, history.flush_ends(), [&](u64 time) { return history.promise_at(time); },
      judge_one);
  return outcome;
}

}  // namespace blockdev::test
