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

// A big-endian number of the image's header (docs/interop/qcow2.txt, "Header").
u64 header_field(const SparseImage& image, u64 offset) {
  ImageSlot slot = ImageSlot::in_memory();
  slot.hold(image);
  u8 bytes[8] = {};
  CHECK(base::read_exactly(slot.fd(), bytes, offset));
  u64 value = 0;
  for (const u8 byte : bytes) value = value << 8 | byte;
  return value;
}

// Which of the tables that the header names have moved: how a table grows.
void note_growth(const SparseImage& start, const SparseImage& end, CrashOutcome& outcome) {
  constexpr u64 kL1TableOffset = 40;
  constexpr u64 kRefcountTableOffset = 48;
  const auto has_moved = [&](u64 field) {
    return header_field(start, field) != header_field(end, field);
  };
  outcome.l1_table_grew = has_moved(kL1TableOffset);
  outcome.refcount_table_grew = has_moved(kRefcountTableOffset);
}

// Twice the size. A crash on the way finds the old one or the new one.
void grow(Disk& disk, SectorHistory& history, RandomRequests& requests, CrashOutcome& outcome) {
  const u64 sectors = history.sector_count() * 2;
  history.resize(sectors);
  const auto done = disk.durable->resize(sectors * kSectorBytes);
  if (!done) return note(outcome, "the disk cannot grow: " + done.error().message());
  requests.set_sector_count(sectors);
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
  if (plan.shape.has_compressed) client.set_discard_granularity(plan.shape.cluster_bytes());
  Stamp stamp = 1;
  for (u32 i = 0; i < plan.requests; ++i) {
    const ModelClient::Request request = requests.next();
    client.start(request, stamp);
    stamp += request.sector_count;
    if (plan.grows != 0 && (i + 1) % (plan.requests / (plan.grows + 1)) == 0) {
      client.drain();
      grow(**disk, history, requests, outcome);
    }
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
  if (plan.shape.format == ImageFormat::qcow2) {
    note_growth(start, replay.final_image(), outcome);
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
