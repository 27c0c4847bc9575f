// What the image engine costs, beside qemu-img bench and fio on the same kind of file in the same
// run: `quicksave image bench` and `qemu-img bench` take the same words and send the same requests.

#include <fmt/format.h>

#include "vmm/bench/image_rig.h"
#include "vmm/bench/plan.h"
#include "vmm/control/size_text.h"

namespace bench {
namespace {

constexpr u64 kDepth = 32;

// What is measured in one row. `before` makes the image that the next run writes to.
struct Case {
  std::string what;
  std::string image;
  ImageWords words;
  std::string fio_mode;      // empty: not beside fio
  double wanted_ratio = 0;   // to qemu-img bench; 0: no bar
  double wanted_of_fio = 0;  // of fio's requests a second; 0: no bar
  bool is_fresh_each_time = false;
};

std::vector<std::string> row_of(const std::string& what, const ImageSeries& series) {
  const auto cell = [](const Samples& samples) {
    return samples.empty() ? "-" : fmt::format("{:.2f}", samples.median());
  };
  return {what,
          cell(series.ours),
          cell(series.peer),
          cell(series.fio_ring),
          cell(series.fio_psync),
          series.peer.empty() ? "-" : fmt::format("{:.1f}", series.peer_ratio()),
          series.fio_best() == 0 ? "-" : fmt::format("{:.2f}", series.of_fio())};
}

void add_bars(const Case& wanted, const ImageSeries& series, std::vector<Bar>& bars) {
  if (wanted.wanted_ratio != 0 && !series.peer.empty()) {
    bars.push_back({fmt::format("{}: {:g} times qemu-img bench", wanted.what, wanted.wanted_ratio),
                    fmt::format("{:.1f} times", series.peer_ratio()),
                    judge(series.peer_ratio(), BarSide::at_least, wanted.wanted_ratio)});
  }
  if (wanted.wanted_of_fio != 0 && series.fio_best() != 0) {
    bars.push_back({fmt::format("{}: {:g} of the better fio on the raw file", wanted.what,
                                wanted.wanted_of_fio),
                    fmt::format("{:.2f}", series.of_fio()),
                    judge(series.of_fio(), BarSide::at_least, wanted.wanted_of_fio)});
  }
}

Result<Table> measure(const Plan& plan, const ImageRig& rig, std::string name, std::string title,
                      const std::vector<Case>& cases) {
  Table table{.name = std::move(name),
              .title = std::move(title),
              .columns = {"what", "ours", "qemu-img bench", "fio io_uring", "fio psync",
                          "qemu-img/ours", "fio/ours"},
              .rows = {},
              .bars = {},
              .notes = {}};
  for (const Case& wanted : cases) {
    const ImageSeries series = TRY_CONTEXT(
        rig.by_turns(wanted.image, wanted.words, wanted.fio_mode,
                     wanted.is_fresh_each_time ? ImageRig::Image::fresh : ImageRig::Image::as_it_is,
                     plan.quick ? 1 : 3),
        wanted.what);
    table.rows.push_back(row_of(wanted.what, series));
    add_bars(wanted, series, table.bars);
  }
  return table;
}

// Reads and overwrites of what is there.
std::vector<Case> plain_cases(const ImageRig& rig, u64 count, double wanted_ratio,
                              double wanted_of_fio,
                              ImageWords::Cache cache = ImageWords::Cache::used) {
  const ImageWords read{.count = count, .depth = kDepth, .cache = cache};
  ImageWords write = read;
  write.op = ImageWords::Op::write;
  std::vector<Case> cases = {
      {"raw, read", rig.raw(), read, "read", wanted_ratio, wanted_of_fio},
      {"qcow2, read", rig.qcow2(), read, "read", wanted_ratio, wanted_of_fio},
      {"qcow2, overwrite", rig.qcow2(), write, "write", wanted_ratio, wanted_of_fio},
      {"qcow2 overlay, read through", rig.overlay("64k"), read, "read", wanted_ratio,
       wanted_of_fio},
  };
  return cases;
}

}  // namespace

Result<Table> measure_images_tmpfs(const Plan& plan) {
  const ImageRig rig = TRY(ImageRig::create(plan.workspace, plan.workspace.path(), base::kGiB));
  const u64 count = plan.quick ? 40'000 : 400'000;
  return measure(plan, rig, "tmpfs",
                 fmt::format("{} requests of 4 KiB, {} at a time, 1 GiB on {}, s", count, kDepth,
                             plan.workspace.path()),
                 plain_cases(rig, count, 2, 0.7));
}

Result<Table> measure_images_cached(const Plan& plan) {
  const Workspace directory = TRY(Workspace::create_on_disk());
  const ImageRig rig = TRY(ImageRig::create(plan.workspace, directory.path(), 512 * base::kMiB));
  const u64 count = plan.quick ? 20'000 : 200'000;
  return measure(
      plan, rig, "cached",
      fmt::format("{} requests of 4 KiB, {} at a time, 512 MiB in the page cache of {}, s", count,
                  kDepth, directory.path()),
      plain_cases(rig, count, 1.3, 0));
}

// For information: it measures the device more than the engine.
Result<Table> measure_images_direct(const Plan& plan) {
  const Workspace directory = TRY(Workspace::create_on_disk());
  const ImageRig rig = TRY(ImageRig::create(plan.workspace, directory.path(), 512 * base::kMiB));
  const u64 count = plan.quick ? 2'000 : 20'000;
  return measure(
      plan, rig, "direct",
      fmt::format("{} requests of 4 KiB, {} at a time, past the page cache (O_DIRECT) to "
                  "the device of {}, s",
                  count, kDepth, directory.path()),
      plain_cases(rig, count, 0, 0, ImageWords::Cache::passed));
}

Result<Table> measure_images_allocate(const Plan& plan) {
  const u64 disk_bytes = plan.quick ? 256 * base::kMiB : 2 * base::kGiB;
  const ImageRig rig = TRY(ImageRig::create(plan.workspace, plan.workspace.path(), disk_bytes));
  std::vector<Case> cases;
  for (const auto& [name, cluster_bytes] :
       {std::pair{"64k", 64 * base::kKiB}, {"128k-extended", 128 * base::kKiB}}) {
    // An odd number of clusters: each is met once, far from the one before.
    const ImageWords scattered{.op = ImageWords::Op::write,
                               .count = disk_bytes / cluster_bytes,
                               .depth = kDepth,
                               .step_bytes = 24'691 * cluster_bytes % disk_bytes};
    ImageWords in_order = scattered;
    in_order.step_bytes = 4096;
    in_order.count = disk_bytes / 4096 / 2;
    cases.push_back({fmt::format("{}, new clusters, scattered", name), rig.overlay(name), scattered,
                     "", 3, 0, true});
    cases.push_back(
        {fmt::format("{}, in order", name), rig.overlay(name), in_order, "", 3, 0, true});
    ImageWords thrown = scattered;
    thrown.target = ImageWords::Target::throw_away;
    cases.push_back({fmt::format("throw-away beside {}, scattered", name), rig.overlay(name),
                     thrown, "", 8, 0, true});
    thrown = in_order;
    thrown.target = ImageWords::Target::throw_away;
    cases.push_back({fmt::format("throw-away beside {}, in order", name), rig.overlay(name), thrown,
                     "", 8, 0, true});
  }
  Table table = TRY(measure(
      plan, rig, "allocate",
      fmt::format("writes of 4 KiB, {} at a time, into an empty overlay over a full qcow2 of {}, s",
                  kDepth, control::format_size(disk_bytes)),
      cases));
  TRY(rig.verify_scattered("64k", 64 * base::kKiB));
  TRY(rig.verify_scattered("128k-extended", 128 * base::kKiB));
  table.notes.push_back(
      "afterwards ours: qemu-img check clean, and equal byte for byte to a raw disk with the same "
      "writes");
  return table;
}

Result<Table> measure_images_chain(const Plan& plan) {
  const ImageRig rig = TRY(ImageRig::create(plan.workspace, plan.workspace.path(), base::kGiB));
  const u64 count = plan.quick ? 40'000 : 400'000;
  Table table{
      .name = "chain",
      .title = fmt::format("{} reads of 4 KiB, {} at a time, from chains of qcow2 layers that "
                           "each hold a share of the disk, s",
                           count, kDepth),
      .columns = {"layers", "ours", "qemu-img bench", "qemu-img/ours"},
      .rows = {},
      .bars = {},
      .notes = {}};
  double of_one = 0;
  for (const u64 layers : {1, 8, 64}) {
    const std::string top = TRY(rig.make_chain(layers));
    ImageWords read{.count = count, .depth = kDepth, .step_bytes = 4096 * 24'691 % base::kGiB};
    const ImageSeries series =
        TRY(rig.by_turns(top, read, "", ImageRig::Image::as_it_is, plan.quick ? 1 : 3));
    table.rows.push_back({fmt::format("{}", layers), fmt::format("{:.2f}", series.ours.median()),
                          series.peer.empty() ? "-" : fmt::format("{:.2f}", series.peer.median()),
                          series.peer.empty() ? "-" : fmt::format("{:.1f}", series.peer_ratio())});
    if (layers == 1) of_one = series.ours.median();
    if (layers == 64) {
      const double share = of_one / series.ours.median();
      table.bars.push_back({"64 layers: 0.8 of the reads a second of one",
                            fmt::format("{:.2f}", share), judge(share, BarSide::at_least, 0.8)});
    }
  }
  return table;
}

}  // namespace bench
