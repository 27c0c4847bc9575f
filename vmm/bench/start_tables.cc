// What a new process costs: restoring a snapshot into one, and booting a small guest.

#include "vmm/bench/qemu_vm.h"
#include "vmm/bench/quicksave_vm.h"
#include "vmm/bench/revert_rig.h"

namespace bench {
namespace {

struct StartSeries {
  Samples ours;
  Samples peer;
  double ratio() const { return peer.empty() ? 0 : peer.median() / ours.median(); }
};

// From the start of the command to its guest's first byte on standard output.
Result<double> first_byte_us(const Workspace& workspace, const std::vector<std::string>& words) {
  const Child child =
      TRY(Child::start(words, workspace.path(), ChildOutput::pipe, workspace.file("errors")));
  const Result<char> byte = read_byte(child.output());
  const double us = us_between(child.started(), Clock::now());
  if (!byte) return Error(byte.error()).with_context(words[0]).with_hint(child.errors());
  return us;
}

Result<StartSeries> by_turns(const Plan& plan, const std::vector<std::string>& ours,
                             const std::vector<std::string>& peer, u32 count, u32 peer_count) {
  StartSeries series;
  TRY(first_byte_us(plan.workspace, ours));
  for (u32 i = 0; i < count; ++i) {
    series.ours.add(TRY(first_byte_us(plan.workspace, ours)));
    const bool is_due = u64{i + 1} * peer_count / count != u64{i} * peer_count / count;
    if (plan.peer && is_due) series.peer.add(TRY(first_byte_us(plan.workspace, peer)));
  }
  return series;
}

std::vector<std::string> row(const std::string& what, const StartSeries& series) {
  std::vector<std::string> cells = {what, ms_text(series.ours.median()),
                                    ms_text(series.ours.percentile(99))};
  if (series.peer.empty()) {
    cells.insert(cells.end(), {"-", "-", "-"});
  } else {
    cells.insert(cells.end(), {ms_text(series.peer.median()), ms_text(series.peer.percentile(99)),
                               ratio_text(series.ratio())});
  }
  return cells;
}

Bar ratio_bar(std::string text, double limit, const StartSeries& series) {
  if (series.peer.empty()) return {std::move(text), "no QEMU here", Verdict::unmeasured};
  return {std::move(text), ratio_text(series.ratio()) + " times",
          judge(series.ratio(), BarSide::at_least, limit)};
}

// The snapshots, ours and the peer's, of VMs that are gone again.
Result<void> make_snapshots(const Plan& plan, const std::string& name, u64 memory_mib) {
  const BenchVmSpec spec{.memory_mib = memory_mib, .mapped_pages = 4096};
  TRY(QuicksaveVm::start(plan.workspace, name, spec));
  if (plan.peer) TRY(QemuVm::start(plan.workspace, name, spec));
  return {};
}

std::vector<std::string> loadvm_words(const Plan& plan, const std::string& name, u64 memory_mib) {
  std::vector<std::string> words = qemu_words(plan.workspace.dirty_pages_guest(), memory_mib);
  for (std::string& word : QemuVm::disk_words(plan.workspace, name)) {
    words.push_back(std::move(word));
  }
  words.insert(words.end(), {"-serial", "stdio", "-loadvm", kSnapshotName});
  return words;
}

}  // namespace

Result<Table> measure_restore(const Plan& plan) {
  Table table{.name = "restore",
              .title =
                  "restore into a new process, ms from the command's start to the guest's first "
                  "byte on stdout",
              .columns = {"memory", "p50", "p99", "qemu -loadvm p50", "p99", "ratio"},
              .rows = {},
              .bars = {},
              .notes = {}};
  std::vector<Point> growth;
  for (const u64 memory_mib : {128, 1024, 4096}) {
    const std::string name = fmt::format("restore{}", memory_mib);
    TRY(make_snapshots(plan, name, memory_mib));
    const bool promised = memory_mib == 1024;
    const StartSeries series =
        TRY(by_turns(plan, {kThisProgram, "restore", fmt::format("{}@{}", name, kSnapshotName)},
                     loadvm_words(plan, name, memory_mib), plan.headline_count(),
                     promised ? plan.headline_count() : plan.peer_curve_count()));
    growth.push_back({static_cast<double>(memory_mib) / 1024, series.ours.median()});
    table.rows.push_back(row(memory_text(memory_mib), series));
    if (promised) {
      table.bars.push_back(ratio_bar("10 times faster than qemu -loadvm at 1 GiB", 10, series));
    }
  }
  const double slope = fit_line(growth).slope;
  table.bars.push_back({.text = "at most 0.6 ms more per GiB of memory, fitted",
                        .measured = ms_text(slope) + " ms",
                        .verdict = judge(slope, BarSide::at_most, 600)});
  return table;
}

Result<Table> measure_cold_start(const Plan& plan) {
  constexpr u64 kMemoryMib = 256;
  std::vector<std::string> qemu = qemu_words(plan.workspace.hello_guest(), kMemoryMib);
  qemu.insert(qemu.end(), {"-serial", "stdio"});
  const StartSeries series = TRY(
      by_turns(plan, {kThisProgram, "run", "--kernel", plan.workspace.hello_guest(), "-m", "256M"},
               qemu, plan.headline_count(), plan.headline_count()));
  return Table{.name = "cold-start",
               .title =
                   "cold start of a small guest, ms from the command's start to its first byte "
                   "on stdout",
               .columns = {"memory", "p50", "p99", "QEMU microvm p50", "p99", "ratio"},
               .rows = {row(memory_text(kMemoryMib), series)},
               .bars = {ratio_bar("12 times faster than QEMU microvm", 12, series)},
               .notes = {}};
}

}  // namespace bench
