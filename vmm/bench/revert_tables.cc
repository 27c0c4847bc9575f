// What a revert in place costs: against dirty pages and memory, against QEMU, against mapped pages.

#include "vmm/bench/revert_rig.h"

namespace bench {
namespace {

// What the promise is about: at most 256 dirty pages of a guest that has mapped up to 4,096.
constexpr u64 kPromisedDirtyPages = 256;
constexpr u64 kPromisedMappedPages = 4096;

std::string or_dash(bool known, std::string text) { return known ? std::move(text) : "-"; }

Bar ratio_bar(u64 memory_mib, double limit, const RevertSeries& series) {
  Bar bar{
      .text = fmt::format("{:.0f} times faster than loadvm at {}", limit, memory_text(memory_mib)),
      .measured = "no QEMU here",
      .verdict = Verdict::unmeasured};
  if (!series.peer.empty()) {
    bar.measured = ratio_text(series.ratio()) + " times";
    bar.verdict = judge(series.ratio(), BarSide::at_least, limit);
  }
  return bar;
}

}  // namespace

Result<Table> measure_in_place(const Plan& plan) {
  Table table{.name = "in-place",
              .title = fmt::format("revert in place, {} pages mapped, us from request to the "
                                   "guest's first byte",
                                   kPromisedMappedPages),
              .columns = {"memory", "dirty pages", "p50", "p99", "own p50", "own p99", "loadvm p50",
                          "ratio"},
              .rows = {},
              .bars = {},
              .notes = {fmt::format("{} reverts a line, {} loadvm", plan.curve_count(),
                                    plan.peer ? plan.peer_curve_count() : 0)}};
  for (const u64 memory_mib : {128, 1024, 4096}) {
    RevertRig rig =
        TRY(RevertRig::start(plan, {.memory_mib = memory_mib, .mapped_pages = kPromisedMappedPages},
                             PeerChoice::beside));
    for (const u64 dirty_pages : {0, 1, 16, 256, 4096}) {
      const RevertSeries series =
          TRY(rig.measure(dirty_pages, plan.curve_count(), plan.peer_curve_count()));
      const bool peer = !series.peer.empty();
      table.rows.push_back({memory_text(memory_mib), fmt::format("{}", dirty_pages),
                            us_text(series.client.median()), us_text(series.client.percentile(99)),
                            us_text(series.own.median()), us_text(series.own.percentile(99)),
                            or_dash(peer, us_text(series.peer.median())),
                            or_dash(peer, ratio_text(series.ratio()))});
    }
  }
  return table;
}

// Against QEMU where the promise names a figure, and alone over the sizes of the growth.
Result<Table> measure_headline(const Plan& plan) {
  Table table{
      .name = "headline",
      .title = fmt::format("revert in place, {} dirty pages of {} mapped, us", kPromisedDirtyPages,
                           kPromisedMappedPages),
      .columns = {"memory", "p50", "p99", "own p50", "loadvm p50", "loadvm p99", "ratio"},
      .rows = {},
      .bars = {},
      .notes = {fmt::format("medians of {}, ours and the peer's by turns", plan.headline_count())}};
  std::vector<Point> growth;
  for (const u64 memory_mib : {256, 1024, 4096, 8192}) {
    const bool compared = memory_mib <= 1024;
    RevertRig rig =
        TRY(RevertRig::start(plan, {.memory_mib = memory_mib, .mapped_pages = kPromisedMappedPages},
                             compared ? PeerChoice::beside : PeerChoice::alone));
    const RevertSeries series =
        TRY(rig.measure(kPromisedDirtyPages, plan.headline_count(), plan.headline_count()));
    const bool peer = !series.peer.empty();
    growth.push_back({static_cast<double>(memory_mib) / 1024, series.client.median()});
    table.rows.push_back({memory_text(memory_mib), us_text(series.client.median()),
                          us_text(series.client.percentile(99)), us_text(series.own.median()),
                          or_dash(peer, us_text(series.peer.median())),
                          or_dash(peer, us_text(series.peer.percentile(99))),
                          or_dash(peer, ratio_text(series.ratio()))});
    if (compared) table.bars.push_back(ratio_bar(memory_mib, memory_mib == 256 ? 30 : 60, series));
  }
  const double slope = fit_line(growth).slope;
  table.bars.push_back({.text = "at most 20 us more per GiB of memory, fitted",
                        .measured = fmt::format("{:.1f} us", slope),
                        .verdict = judge(slope, BarSide::at_most, 20)});
  return table;
}

namespace {

struct MappedSeries {
  Samples revert;
  Samples own;
  Samples first_pass;  // after a revert: what it took away has to be faulted in again
  Samples next_pass;
};

Result<double> timed_pass(BenchVm& vm) {
  const Clock::time_point start = Clock::now();
  TRY(vm.guest().say("m"));
  return us_between(start, Clock::now());
}

Result<MappedSeries> measure_passes(BenchVm& vm, u32 count) {
  MappedSeries series;
  for (u32 i = 0; i < count; ++i) {
    series.first_pass.add(TRY(timed_pass(vm)));
    series.next_pass.add(TRY(timed_pass(vm)));
    TRY(vm.guest().say("n16\n"));
    TRY(vm.guest().say("d"));
    const RevertTime time = TRY(vm.revert());
    series.revert.add(time.client_us);
    series.own.add(time.own_us);
  }
  return series;
}

}  // namespace

Result<Table> measure_mapped(const Plan& plan) {
  constexpr u64 kMemoryMib = 1024;
  Table table{.name = "mapped",
              .title =
                  "revert in place of 1 GiB against mapped pages, 16 dirty, and the tax on the "
                  "guest's next pass over its set, us",
              .columns = {"mapped pages", "p50", "p99", "own p50", "next pass",
                          "pass in steady run", "tax", "tax a page"},
              .rows = {},
              .bars = {},
              .notes = {"a pass reads one word of each mapped page; the tax is what the first one "
                        "after a revert costs more"}};
  for (const u64 mapped_pages : {256, 4096, 16384, 65536}) {
    RevertRig rig = TRY(RevertRig::start(
        plan, {.memory_mib = kMemoryMib, .mapped_pages = mapped_pages}, PeerChoice::alone));
    const MappedSeries series = TRY(measure_passes(rig.ours(), plan.curve_count()));
    const double tax = series.first_pass.median() - series.next_pass.median();
    table.rows.push_back({fmt::format("{}", mapped_pages), us_text(series.revert.median()),
                          us_text(series.revert.percentile(99)), us_text(series.own.median()),
                          us_text(series.first_pass.median()), us_text(series.next_pass.median()),
                          us_text(tax),
                          fmt::format("{:.3f}", tax / static_cast<double>(mapped_pages))});
  }
  return table;
}

}  // namespace bench
