// What a guest gets of its disk: against the same requests without a guest, with where the time
// goes, and while a snapshot writes out what the guest wrote before.

#include <time.h>

#include <algorithm>

#include "vmm/bench/disk_guest.h"
#include "vmm/bench/image_rig.h"
#include "vmm/bench/plan.h"
#include "vmm/bench/quicksave_vm.h"
#include "vmm/bench/samples.h"
#include "vmm/control/size_text.h"

namespace bench {
namespace {

constexpr u64 kGuestDepth = 32;
// Odd, so that each block is met once in a round over any power of two of them, and far from the
// one before.
constexpr u64 kStepBlocks = 24'691;

// --- guest -------------------------------------------------------------------------------------

struct GuestCase {
  std::string what;
  std::string mode;  // of --disk; `words.target` says the same to `image bench`
  ImageWords words;
};

// Microseconds and counts are per request.
struct GuestSeries {
  Samples guest_per_second;
  Samples alone_per_second;
  Samples kicks;
  Samples sleeps;  // of the queue's thread
  Samples queue_user;
  Samples queue_system;
  Samples vcpu_user;
  Samples vcpu_system;
  Samples alone_user;
  Samples alone_system;
};

std::vector<GuestCase> guest_cases(u64 count) {
  using Op = ImageWords::Op;
  using Target = ImageWords::Target;
  const u64 step_bytes = kStepBlocks * 4096;
  // As many blocks as an overlay keeps in memory by default.
  const u64 thrown_count = std::min<u64>(count, 60'000);
  return {{"read, mode=overlay",
           "overlay",
           {Op::read, count, kGuestDepth, step_bytes, Target::throw_away}},
          {"overwrite, mode=persist",
           "persist",
           {Op::write, count, kGuestDepth, step_bytes, Target::image}},
          {"write, mode=overlay",
           "overlay",
           {Op::write, thrown_count, kGuestDepth, step_bytes, Target::throw_away}}};
}

Result<void> measure_alone(const ImageRig& rig, const GuestCase& wanted, GuestSeries& series) {
  const auto count = static_cast<double>(wanted.words.count);
  const ThreadTimes before = times_of_ended_children();
  const double seconds = TRY(rig.our_seconds(rig.qcow2(), wanted.words));
  const ThreadTimes times = times_of_ended_children() - before;
  series.alone_per_second.add(count / seconds);
  series.alone_user.add(times.user_us / count);
  series.alone_system.add(times.system_us / count);
  return {};
}

Result<void> measure_in_guest(const Plan& plan, const ImageRig& rig, const GuestCase& wanted,
                              u64 disk_bytes, GuestSeries& series) {
  DiskGuest guest = TRY(DiskGuest::start(
      plan.workspace, fmt::format("{},format=qcow2,mode={}", rig.qcow2(), wanted.mode)));
  ThreadTimesByName before = TRY(guest.thread_times());
  const DiskLoadResult load = TRY(guest.run(
      {.op = wanted.words.op == ImageWords::Op::write ? DiskLoad::Op::write : DiskLoad::Op::read,
       .count = wanted.words.count,
       .depth = kGuestDepth,
       .step = kStepBlocks,
       .first = 0,
       .blocks = disk_bytes / 4096}));
  ThreadTimesByName after = TRY(guest.thread_times());
  const auto count = static_cast<double>(load.requests);
  const ThreadTimes vcpu = after["vcpu0"] - before["vcpu0"];
  const ThreadTimes queue = after["disk0.0"] - before["disk0.0"];
  series.guest_per_second.add(load.per_second());
  series.kicks.add(static_cast<double>(load.kicks) / count);
  series.sleeps.add(static_cast<double>(queue.sleeps) / count);
  series.queue_user.add(queue.user_us / count);
  series.queue_system.add(queue.system_us / count);
  series.vcpu_user.add(vcpu.user_us / count);
  series.vcpu_system.add(vcpu.system_us / count);
  return {};
}

std::vector<std::string> guest_row(const std::string& what, const GuestSeries& series) {
  const auto rounded = [](const Samples& samples) {
    return fmt::format("{:.0f}", samples.median());
  };
  const auto exact = [](const Samples& samples) { return fmt::format("{:.2f}", samples.median()); };
  return {
      what,
      rounded(series.guest_per_second),
      rounded(series.alone_per_second),
      fmt::format("{:.2f}", series.guest_per_second.median() / series.alone_per_second.median()),
      fmt::format("{:.2f}", 1e6 / series.guest_per_second.median()),
      exact(series.queue_user),
      exact(series.queue_system),
      exact(series.vcpu_user),
      exact(series.vcpu_system),
      exact(series.kicks),
      exact(series.sleeps),
      exact(series.alone_user),
      exact(series.alone_system)};
}

}  // namespace

Result<Table> measure_images_guest(const Plan& plan) {
  const u64 disk_bytes = plan.quick ? 256 * base::kMiB : base::kGiB;
  const ImageRig rig = TRY(ImageRig::create(plan.workspace, plan.workspace.path(), disk_bytes));
  const u64 count = plan.quick ? 100'000 : 400'000;
  const u32 rounds = plan.quick ? 1 : 5;
  Table table{
      .name = "guest",
      .title = fmt::format("requests of 4 KiB, {} at a time, in random order, on one qcow2 of "
                           "{}: a second in a guest and without one, and us and counts for "
                           "each request",
                           kGuestDepth, control::format_size(disk_bytes)),
      .columns = {"what", "in a guest", "image bench", "share", "us", "queue user", "queue system",
                  "vCPU user", "vCPU system", "kicks", "queue sleeps", "bench user",
                  "bench system"},
      .rows = {},
      .bars = {},
      .notes = {"queue and vCPU: processor time of these two threads of the VM; the guest "
                "never sleeps, so its vCPU is always busy, and takes no interrupts",
                "kicks: writes to the notify register, an exit each; queue sleeps: how often "
                "the queue's thread waited for one or for the disk",
                "bench: processor time of all of `quicksave image bench`, its start included"}};
  for (const GuestCase& wanted : guest_cases(count)) {
    GuestSeries series;
    for (u32 round = 0; round < rounds; ++round) {
      TRY_CONTEXT(measure_alone(rig, wanted, series), wanted.what);
      TRY_CONTEXT(measure_in_guest(plan, rig, wanted, disk_bytes, series), wanted.what);
    }
    table.rows.push_back(guest_row(wanted.what, series));
  }
  return table;
}

// --- handover ----------------------------------------------------------------------------------

namespace {

constexpr u64 kDirtiedBlocks = 256 * base::kMiB / 4096;
// Where the guest writes while it is watched, behind what it dirtied.
constexpr u64 kWatchedBlocks = 64 * base::kMiB / 4096;

struct HandoverSeries {
  Samples quiet_median, quiet_p99, quiet_longest, quiet_per_second;
  Samples busy_median, busy_p99, busy_longest, busy_per_second;
  Samples snapshot_ms;
  Samples layer_mib;
};

DiskLoad watched_load(u64 depth) {
  return {.op = DiskLoad::Op::write,
          .count = DiskLoad::kUntilEnded,
          .depth = depth,
          .step = kStepBlocks,
          .first = kDirtiedBlocks,
          .blocks = kWatchedBlocks};
}

Result<DiskLoadResult> watch_quiet(DiskGuest& guest, u64 depth, u64 window_ms) {
  TRY(guest.begin(watched_load(depth)));
  const timespec window{static_cast<time_t>(window_ms / 1000),
                        static_cast<long>(window_ms % 1000 * 1'000'000)};
  ::nanosleep(&window, nullptr);
  return guest.end();
}

// Each window begins right behind a snapshot, with an empty layer, so that the same writes cost the
// same in both.
Result<void> measure_handover_once(DiskGuest& guest, u64 depth, u64 window_ms, u32 round,
                                   HandoverSeries& series) {
  TRY(guest.snapshot(fmt::format("before{}", round)));
  const DiskLoadResult quiet = TRY(watch_quiet(guest, depth, window_ms));
  TRY(guest.run({.op = DiskLoad::Op::write,
                 .count = kDirtiedBlocks,
                 .depth = kGuestDepth,
                 .step = kStepBlocks,
                 .first = 0,
                 .blocks = kDirtiedBlocks}));
  TRY(guest.begin(watched_load(depth)));
  const SnapshotCost snapshot = TRY(guest.snapshot(fmt::format("s{}", round)));
  const DiskLoadResult busy = TRY(guest.end());
  const auto us = [](u64 ns) { return static_cast<double>(ns) / 1e3; };
  series.quiet_median.add(us(quiet.median_ns));
  series.quiet_p99.add(us(quiet.p99_ns));
  series.quiet_longest.add(us(quiet.longest_ns));
  series.quiet_per_second.add(quiet.per_second());
  series.busy_median.add(us(busy.median_ns));
  series.busy_p99.add(us(busy.p99_ns));
  series.busy_longest.add(us(busy.longest_ns));
  series.busy_per_second.add(busy.per_second());
  series.snapshot_ms.add(snapshot.total_us / 1e3);
  series.layer_mib.add(static_cast<double>(snapshot.disk_bytes) / static_cast<double>(base::kMiB));
  return {};
}

std::vector<std::string> handover_row(u64 depth, const HandoverSeries& series) {
  const auto rounded = [](const Samples& samples) {
    return fmt::format("{:.0f}", samples.median());
  };
  return {fmt::format("{}", depth),
          rounded(series.quiet_per_second),
          rounded(series.quiet_median),
          rounded(series.quiet_p99),
          rounded(series.quiet_longest),
          rounded(series.busy_per_second),
          rounded(series.busy_median),
          rounded(series.busy_p99),
          rounded(series.busy_longest),
          fmt::format("{:.2f}", series.busy_p99.median() / series.quiet_p99.median()),
          rounded(series.layer_mib),
          rounded(series.snapshot_ms)};
}

Result<void> make_empty_disk(const Workspace& workspace, const std::string& path) {
  Child create = TRY(Child::start({kThisProgram, "image", "create", "-f", "qcow2", path, "1G"},
                                  workspace.path(), ChildOutput::none, workspace.file("errors")));
  if (create.wait() == 0) return {};
  return make_error(ErrorKind::failed, "quicksave image create failed: {}", create.errors());
}

}  // namespace

Result<Table> measure_images_handover(const Plan& plan) {
  const u32 rounds = plan.quick ? 2 : 5;
  const u64 window_ms = plan.quick ? 300 : 1000;
  const std::string disk = plan.workspace.file("handover.qcow2");
  TRY(make_empty_disk(plan.workspace, disk));
  Table table{
      .name = "handover",
      .title =
          "writes of 4 KiB by a guest, in quiet and while `snapshot create` writes out "
          "what it wrote before: a second, and us for one",
      .columns = {"at a time", "quiet/s", "p50", "p99", "longest", "snapshot/s", "p50", "p99",
                  "longest", "p99 ratio", "layer MiB", "snapshot ms"},
      .rows = {},
      .bars = {},
      .notes = {"from the request for the snapshot until it is durable, the pause included; the "
                "guest never sleeps, so it and its queue's thread keep two processors busy"}};
  for (const u64 depth : {u64{1}, kGuestDepth}) {
    DiskGuest guest = TRY(DiskGuest::start(plan.workspace, disk + ",format=qcow2"));
    HandoverSeries series;
    for (u32 round = 1; round <= rounds; ++round) {
      TRY_CONTEXT(measure_handover_once(guest, depth, window_ms, round, series),
                  fmt::format("{} at a time", depth));
    }
    table.rows.push_back(handover_row(depth, series));
    const double ratio = series.busy_p99.median() / series.quiet_p99.median();
    table.bars.push_back({fmt::format("{} at a time: p99 at most doubles", depth),
                          fmt::format("{:.2f} times", ratio), judge(ratio, BarSide::at_most, 2)});
  }
  return table;
}

}  // namespace bench
