// What a new overlay costs, and throwing it away: a snapshot makes one for each disk, a revert
// drops it. Neither may depend on the disk's size or on what was written.

#include <fcntl.h>
#include <unistd.h>

#include "blockdev/durable_disk.h"
#include "blockdev/image_chain.h"
#include "blockdev/overlay.h"
#include "blockdev/qcow2_create.h"
#include "vmm/bench/child.h"
#include "vmm/bench/plan.h"
#include "vmm/bench/samples.h"
#include "vmm/control/size_text.h"

namespace bench {
namespace {

using blockdev::DurableDisk;
using blockdev::LayerList;
using blockdev::Overlay;

constexpr double kPromisedUs = 1000;
// What an overlay keeps in memory by default, so that nothing of it is in a file.
constexpr u64 kWrittenBytes = 256 * base::kMiB;
constexpr u64 kPieceBytes = 64 * base::kKiB;

struct OverlayCost {
  Samples create;
  Samples drop;
  Samples removal;  // of the dropped file, which nobody waits for
};

class LastStatus final : public blockdev::BlockClient {
 public:
  void on_done(blockdev::BlockRequest&, blockdev::BlockStatus status) override {
    if (status != blockdev::BlockStatus::ok) failed_ = true;
  }
  bool failed() const { return failed_; }

 private:
  bool failed_ = false;
};

double us_since(Clock::time_point start) { return us_between(start, Clock::now()); }

// Evenly over the whole disk: as many places of the index as so many bytes can touch.
Result<void> write_spread(blockdev::BlockBackend& disk, u64 bytes) {
  const std::unique_ptr<blockdev::BlockQueue> queue = TRY(disk.open_queue());
  std::vector<u8> data(kPieceBytes, 0x5a);
  const iovec buffer{data.data(), data.size()};
  const u64 count = bytes / kPieceBytes;
  LastStatus client;
  for (u64 i = 0; i < count; ++i) {
    blockdev::BlockRequest request{
        .op = blockdev::BlockOp::write,
        .offset_bytes = disk.size_bytes() / kPieceBytes / count * i * kPieceBytes,
        .length_bytes = kPieceBytes,
        .buffers = {&buffer, 1},
        .client = &client};
    queue->submit(request);
    queue->drain();
  }
  if (!client.failed()) return {};
  return make_error(ErrorKind::failed, "a write to the overlay failed");
}

// An empty qcow2 file, `name` in the workspace; `below` is empty or the name of what lies below it.
Result<std::string> make_image(const Workspace& workspace, const std::string& name, u64 size_bytes,
                               const std::string& below) {
  std::string path = workspace.file(name);
  const base::Fd file = TRY(base::open_file(path, O_RDWR | O_CREAT | O_EXCL));
  TRY(blockdev::qcow2::create_image(
      file, blockdev::qcow2::overlay_image(size_bytes, below, below.empty() ? "" : "qcow2")));
  return path;
}

Result<OverlayCost> measure_throw_away(const Workspace& workspace, const LayerList& lower,
                                       u64 written_bytes, u32 count) {
  OverlayCost cost;
  for (u32 i = 0; i < count; ++i) {
    const Clock::time_point started = Clock::now();
    const std::unique_ptr<Overlay> overlay =
        TRY(Overlay::create(lower, {.spill_directory = workspace.path()}));
    cost.create.add(us_since(started));
    TRY(write_spread(*overlay, written_bytes));
    const Clock::time_point dropped = Clock::now();
    overlay->discard();
    cost.drop.add(us_since(dropped));
  }
  return cost;
}

// As a VM does it at a snapshot or a revert: the next file is made and opened while the guest runs,
// then the disk goes on in it, and the file before goes.
Result<OverlayCost> measure_durable(const Workspace& workspace, const LayerList& lower,
                                    const std::string& below, u64 written_bytes, u32 count) {
  constexpr auto kQcow2 = blockdev::ImageFormat::qcow2;
  const u64 size_bytes = lower.front()->size_bytes();
  OverlayCost cost;
  std::string path = TRY(make_image(workspace, "head-0.qcow2", size_bytes, below));
  blockdev::ImageFile first = TRY(blockdev::open_image_file_for_writing(path, kQcow2));
  const std::unique_ptr<DurableDisk> disk = TRY(DurableDisk::create(std::move(first), lower, {}));
  for (u32 i = 1; i <= count; ++i) {
    TRY(write_spread(*disk, written_bytes));
    const Clock::time_point started = Clock::now();
    std::string next =
        TRY(make_image(workspace, fmt::format("head-{}.qcow2", i), size_bytes, below));
    blockdev::ImageFile file = TRY(blockdev::open_image_file_for_writing(next, kQcow2));
    auto fresh = TRY(disk->prepare(std::move(file)));
    cost.create.add(us_since(started));
    const Clock::time_point dropped = Clock::now();
    disk->switch_to(std::move(fresh), lower);
    cost.drop.add(us_since(dropped));
    const Clock::time_point removed = Clock::now();
    if (::unlink(path.c_str()) != 0) return errno_error("remove \"{}\"", path);
    cost.removal.add(us_since(removed));
    path = std::move(next);
  }
  ::unlink(path.c_str());
  return cost;
}

std::vector<std::string> overlay_row(const std::string& kind, u64 size_bytes, u64 written_bytes,
                                     const OverlayCost& cost) {
  return {kind,
          control::format_size(size_bytes),
          control::format_size(written_bytes),
          us_text(cost.create.median()),
          us_text(cost.create.percentile(99)),
          us_text(cost.drop.median()),
          us_text(cost.drop.percentile(99)),
          cost.removal.empty() ? "-" : us_text(cost.removal.median())};
}

// The slowest median of all sizes and amounts.
struct SlowestOverlay {
  double create_us = 0;
  double drop_us = 0;

  void add(const OverlayCost& cost) {
    create_us = std::max(create_us, cost.create.median());
    drop_us = std::max(drop_us, cost.drop.median());
  }
  void add_bars(const std::string& kind, std::vector<Bar>& bars) const {
    for (const auto& [what, us] : {std::pair{"creating", create_us}, {"dropping", drop_us}}) {
      bars.push_back(
          {fmt::format("{}, {}: under 1 ms whatever its size and what was written", kind, what),
           fmt::format("{:.0f} us at most", us), judge(us, BarSide::at_most, kPromisedUs)});
    }
  }
};

}  // namespace

Result<Table> measure_images_overlay(const Plan& plan) {
  const u32 count = plan.quick ? 3 : 50;
  Table table{
      .name = "overlay",
      .title = fmt::format("making and dropping an overlay, medians of {}, us", count),
      .columns = {"overlay", "disk", "written", "create p50", "create p99", "drop p50", "drop p99",
                  "file's removal p50"},
      .rows = {},
      .bars = {},
      .notes = {"qcow2: creating is making the file and opening it for writing, nothing synced; "
                "dropping is going on in the next one; the removal of the file is behind the "
                "guest's back",
                "throw-away: dropping is what a revert does; the memory goes back to the host "
                "behind its back"}};
  SlowestOverlay throw_away;
  SlowestOverlay durable;
  for (const u64 size_bytes : {base::kGiB, 64 * base::kGiB, 1024 * base::kGiB}) {
    const std::string base_name = fmt::format("base-{}.qcow2", size_bytes);
    const std::string base_path = TRY(make_image(plan.workspace, base_name, size_bytes, ""));
    const blockdev::ImageChain base =
        TRY(blockdev::open_image_chain({.path = base_path,
                                        .format = blockdev::ImageFormat::qcow2,
                                        .backing = {},
                                        .backing_dir = {}}));
    for (const u64 written_bytes : {u64{0}, kWrittenBytes}) {
      const OverlayCost in_memory =
          TRY(measure_throw_away(plan.workspace, base.layers, written_bytes, count));
      table.rows.push_back(overlay_row("throw-away", size_bytes, written_bytes, in_memory));
      throw_away.add(in_memory);
      const OverlayCost in_file =
          TRY(measure_durable(plan.workspace, base.layers, base_name, written_bytes, count));
      table.rows.push_back(overlay_row("qcow2", size_bytes, written_bytes, in_file));
      durable.add(in_file);
    }
  }
  throw_away.add_bars("throw-away", table.bars);
  durable.add_bars("qcow2", table.bars);
  return table;
}

}  // namespace bench
