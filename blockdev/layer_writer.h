// write_layer: what a sealed layer holds, written once, front to back, as a standard qcow2 file.
//
// The strict profile (version 3, extended L2, 128 KiB clusters with 4 KiB subclusters, refcounts of
// 16 bits, every cluster referenced once and marked COPIED, nothing compressed, no snapshots, no
// dirty bit): `qemu-img check` finds nothing to say about it. The layout is known before the first
// byte is written, because the layer is immutable:
//
//   header | refcount table | refcount blocks | L1 | L2 tables | data clusters in guest order
//
// Within a data cluster only the blocks that the layer has are written; the rest stays a hole.
// Blocks of which the layer has only some sectors are completed from the layers below.
//
// Thread: any; meant for a background thread while the guest goes on.

#pragma once

#include <string>

#include "blockdev/disk_spec.h"
#include "blockdev/layer.h"
#include "blockdev/overlay_layer.h"
#include "vmm/base/fd.h"

namespace blockdev {

struct LayerFile {
  u64 file_bytes = 0;  // size of the file
  u64 checksum = 0;    // XXH3 (64 bits) of the whole file, holes as zeros
};

struct BackingName {
  std::string path;  // as it goes into the header: relative to the file's directory
  ImageFormat format = ImageFormat::qcow2;
};

// Writes `sealed` to the empty file `fd`. `below` is what it lies on, from top to bottom: it
// completes partial blocks. The caller syncs the file. On an Error (no_space and others) the file
// is garbage, and nothing else has changed.
Result<LayerFile> write_layer(const OverlayLayer& sealed, const LayerList& below,
                              const BackingName& backing, const base::Fd& fd);

}  // namespace blockdev
