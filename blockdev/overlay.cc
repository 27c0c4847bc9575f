#include "blockdev/overlay.h"

#include <algorithm>

#include "blockdev/content_map.h"
#include "vmm/base/check.h"

namespace blockdev {
namespace {

ArenaOptions arena_options(const OverlayOptions& options) {
  return {options.memory_limit_bytes, options.keep_bytes, options.spill_directory};
}

}  // namespace

Result<std::unique_ptr<Overlay>> Overlay::create(LayerList lower, const OverlayOptions& options,
                                                 EngineMaker make_engine) {
  CHECK(!lower.empty());
  TRY(check_layer_count(lower.size()));
  auto janitor = std::make_shared<Janitor>();
  std::shared_ptr<OverlayLayer> active = TRY_CONTEXT(
      OverlayLayer::create(lower.front()->size_bytes(), arena_options(options), janitor),
      "make an overlay");
  return std::unique_ptr<Overlay>(new Overlay(std::move(lower), options, std::move(make_engine),
                                              std::move(janitor), std::move(active)));
}

Overlay::Overlay(LayerList lower, const OverlayOptions& options, EngineMaker make_engine,
                 std::shared_ptr<Janitor> janitor, std::shared_ptr<OverlayLayer> active)
    : options_(options),
      make_engine_(std::move(make_engine)),
      janitor_(std::move(janitor)),
      active_(std::move(active)) {
  stack_ = {lower.front()->size_bytes(), active_.get(), std::move(lower)};
}

Overlay::~Overlay() = default;

Result<std::unique_ptr<BlockQueue>> Overlay::open_queue() {
  return std::unique_ptr<BlockQueue>(std::make_unique<DiskQueue>(stack_, TRY(make_engine_())));
}

Result<std::vector<ContentRun>> Overlay::map_content(u64 offset_bytes, u64 length_bytes,
                                                     u64 max_runs) const {
  std::vector<ContentRun> found;
  ContentRuns runs(max_runs, found);
  const u64 end = offset_bytes + length_bytes;
  for (u64 at = offset_bytes; at < end;) {
    const u64 block = at / kBlockBytes;
    const OverlayLayer::BlockRun run = active_->block_run(block);
    const u64 length = std::min(end, (block + run.count) * kBlockBytes) - at;
    // A block with sectors of several kinds counts as data: at worst zeros are read for nothing.
    const Content content = run.state == BlockState::zero ? Content::zero : Content::data;
    const bool is_taken = run.state == BlockState::absent
                              ? TRY(map_layers(stack_.lower, at, length, runs)) == MapStep::more
                              : runs.add({content, length});
    if (!is_taken) break;
    at += length;
  }
  return found;
}

Result<SealedPointer> Overlay::seal() {
  TRY_CONTEXT(check_layer_count(stack_.lower.size() + 1), "seal the overlay");
  std::shared_ptr<OverlayLayer> fresh =
      TRY_CONTEXT(OverlayLayer::create(stack_.size_bytes, arena_options(options_), janitor_),
                  "seal the overlay");
  SealedPointer sealed = std::exchange(active_, std::move(fresh));
  stack_.active = active_.get();
  stack_.lower.insert(stack_.lower.begin(), sealed);
  return sealed;
}

DiscardReport Overlay::discard() {
  const DiscardReport report{active_->block_count()};
  active_->drop();
  return report;
}

DiscardReport Overlay::rebase_on(LayerList lower) {
  CHECK(!lower.empty() && lower.front()->size_bytes() == stack_.size_bytes);
  DiscardReport report = discard();
  if (lower == stack_.lower) return report;  // the usual revert: to the newest snapshot
  for (const LayerPointer& layer : stack_.lower) {
    if (std::find(lower.begin(), lower.end(), layer) != lower.end()) continue;
    report.block_count += layer->volatile_block_count();
  }
  // The last holder of a sealed layer unmaps it: not here.
  janitor_->dispose(std::exchange(stack_.lower, std::move(lower)));
  return report;
}

bool Overlay::replace_with(const SealedPointer& sealed, LayerPointer durable) {
  CHECK(durable->size_bytes() == sealed->size_bytes());
  const auto found = std::find(stack_.lower.begin(), stack_.lower.end(), sealed);
  if (found == stack_.lower.end()) return false;
  janitor_->dispose(std::exchange(*found, std::move(durable)));
  return true;
}

}  // namespace blockdev
