// DiskOptions: what a disk needs from its process, beside what the user says of it (DiskSpec).

#pragma once

#include <memory>

#include "blockdev/image_file.h"
#include "blockdev/io_engine.h"
#include "blockdev/overlay.h"

namespace blockdev {

class Executor;

enum class GetsBacking : u8 { no, yes };

struct DiskOptions {
  OverlayOptions overlay;                       // mode=overlay
  EngineMaker make_engine = make_io_engine;     // of all that reads or writes the disk's data
  ImageLocking locking = ImageLocking::shared;  // not in mode=persist: of all images
  // mode=persist: whether the image gets a backing file before it is read again: what is not in it is
  // not zero then.
  GetsBacking gets_backing = GetsBacking::no;
  // mode=persist: where flushes run; null: on a thread of the disk's own.
  std::shared_ptr<Executor> executor = nullptr;
};

}  // namespace blockdev
