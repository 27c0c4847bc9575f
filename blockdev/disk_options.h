// DiskOptions: what a disk needs from its process, beside what the user says of it (DiskSpec).

#pragma once

#include <memory>

#include "blockdev/io_engine.h"
#include "blockdev/overlay.h"

namespace blockdev {

class Executor;

struct DiskOptions {
  OverlayOptions overlay;                    // mode=overlay
  EngineMaker make_engine = make_io_engine;  // mode=persist: of all that reads or writes the image
  // mode=persist: where flushes run; null: on a thread of the disk's own.
  std::shared_ptr<Executor> executor = nullptr;
};

}  // namespace blockdev
