// DurableDisk: a disk that is written through to its image, raw or qcow2 (mode=persist).
//
// A flush that completes makes durable what completed before it, in two barriers if something was
// allocated since the last and in one otherwise. After a crash the image is good at any moment
// (reference/qcow2.md section 2): flushed data is there, each other sector is old or new.
//
// prepare() and switch_to() freeze the image and go on in a fresh one, above it or above other
// layers: the disk half of snapshot and revert.
//
// Invariant: the image is written by this object alone; its lock says so to others.
// Thread: as BlockBackend; calls marked "REQUIRES: drained" as Overlay's.

#pragma once

#include <memory>

#include "blockdev/block_backend.h"
#include "blockdev/disk_options.h"
#include "blockdev/disk_spec.h"
#include "blockdev/durable_queue.h"
#include "blockdev/executor.h"
#include "blockdev/flusher.h"
#include "blockdev/image_file.h"

namespace blockdev {

class DurableDisk final : public BlockBackend {
 public:
  // `top` was opened for writing. `lower`, from top to bottom, may be empty; below a raw image it
  // must be.
  static Result<std::unique_ptr<DurableDisk>> create(ImageFile top, LayerList lower,
                                                     const DiskOptions& options);
  // As close(), with what fails said in the log. REQUIRES: no queue is open.
  ~DurableDisk() override;

  u64 size_bytes() const override { return stack_.layers.size_bytes; }
  bool is_read_only() const override { return false; }
  u32 discard_granularity_bytes() const override { return stack_.top->discard_granularity_bytes(); }
  Result<std::unique_ptr<BlockQueue>> open_queue() override;
  Result<std::vector<ContentRun>> map_content(u64 offset_bytes, u64 length_bytes,
                                              u64 max_runs) const override;

  // All that completed is durable when this returns. Any time; waits for other flushes.
  Result<void> flush();

  // REQUIRES for all below: drained.

  // Makes the disk larger (a raw one also smaller). New sectors are zeros.
  Result<void> resize(u64 size_bytes);
  // From top to bottom, without the image that is written.
  const LayerList& lower() const { return lower_; }
  // Opens an empty image of the same size, for switch_to(). Any time.
  Result<std::shared_ptr<WritableImage>> prepare(ImageFile fresh) const;
  // Goes on with `fresh` above `lower`; touches no file. What was written until then comes back,
  // neither flushed nor closed, and a flush of it may be running; it is a layer and changes no more.
  std::shared_ptr<WritableImage> switch_to(std::shared_ptr<WritableImage> fresh, LayerList lower);
  // The image that is written, as a layer.
  const std::shared_ptr<WritableImage>& top() const { return stack_.top; }

  // The last flush. Nothing may be done with the disk afterwards.
  Result<void> close();

 private:
  DurableDisk(std::shared_ptr<WritableImage> top, LayerList lower, EngineMaker make_engine,
              std::shared_ptr<Executor> executor, std::unique_ptr<IoEngine> flush_engine);

  void use(std::shared_ptr<WritableImage> top, LayerList lower);
  Result<void> zero_grown(u64 old_size_bytes);

  const EngineMaker make_engine_;
  const std::shared_ptr<Executor> executor_;
  LayerList lower_;
  DurableStack stack_;
  Flusher flusher_;
  bool is_closed_ = false;
};

}  // namespace blockdev
