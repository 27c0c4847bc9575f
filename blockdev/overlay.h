// Overlay: the writable disk of a VM: a throw-away layer over sealed layers over an image chain.
//
// Writes go to the active layer; reads come from the first layer that has the sector. seal()
// freezes the active layer and starts an empty one; discard() and rebase_on() throw away what was
// written since. Together they are the disk half of snapshot and revert, and cost the same whatever
// was written.
//
// Invariant: a sealed layer is never written again, and nothing below the active layer changes
// except by a call that REQUIRES drained.
// Thread: queues as BlockQueue says. Calls marked "REQUIRES: drained" come from one thread while no
// queue has a request in flight and none submits; who stops and restarts the queues orders memory.

#pragma once

#include <memory>
#include <string>

#include "blockdev/block_backend.h"
#include "blockdev/disk_queue.h"
#include "blockdev/layer.h"
#include "blockdev/overlay_layer.h"

namespace blockdev {

struct OverlayOptions {
  // Data beyond this goes to an unlinked file in `spill_directory`.
  u64 memory_limit_bytes = 256 * base::kMiB;
  // Of a dropped layer's memory, so much is kept for the next one.
  u64 keep_bytes = 64 * base::kMiB;
  std::string spill_directory = "/var/tmp";
};

struct DiscardReport {
  u64 block_count = 0;  // 4 KiB blocks that were thrown away
};

class Overlay final : public BlockBackend {
 public:
  // `lower` from top to bottom, not empty. The disk is as large as lower.front().
  static Result<std::unique_ptr<Overlay>> create(LayerList lower, const OverlayOptions& options,
                                                 EngineMaker make_engine = make_io_engine);
  ~Overlay() override;

  u64 size_bytes() const override { return stack_.size_bytes; }
  bool is_read_only() const override { return false; }
  u32 discard_granularity_bytes() const override { return kBlockBytes; }
  Result<std::unique_ptr<BlockQueue>> open_queue() override;
  Result<std::vector<ContentRun>> map_content(u64 offset_bytes, u64 length_bytes,
                                              u64 max_runs) const override;

  // REQUIRES for all below: drained.

  // Freezes the active layer, puts it on top of lower() and starts an empty one. Fails, with
  // nothing changed, when the host has no address space left or the stack is too high.
  Result<SealedPointer> seal();
  // Throws away what was written since the last seal().
  DiscardReport discard();
  // Throws away what was written since, and puts the disk on `lower` (a list that lower() returned
  // once, or that was built from its parts). The report counts sealed layers that left the stack.
  DiscardReport rebase_on(LayerList lower);
  // From now on `durable` is read where `sealed` was. Both hold the same content. False: `sealed`
  // is not in the stack (any more). The arena goes when the last holder of `sealed` lets it go.
  bool replace_with(const SealedPointer& sealed, LayerPointer durable);
  // From top to bottom, without the active layer.
  const LayerList& lower() const { return stack_.lower; }

  // Any time: blocks in the active layer.
  u64 active_block_count() const { return stack_.active->block_count(); }

 private:
  Overlay(LayerList lower, const OverlayOptions& options, EngineMaker make_engine,
          std::shared_ptr<Janitor> janitor, std::shared_ptr<OverlayLayer> active);

  OverlayOptions options_;
  const EngineMaker make_engine_;
  std::shared_ptr<Janitor> janitor_;
  std::shared_ptr<OverlayLayer> active_;
  DiskStack stack_;  // what the queues read; stack_.active is active_
};

}  // namespace blockdev
