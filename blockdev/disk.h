// Disk: a DiskSpec opened: its images, locked, and the backend that the device talks to.

#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "blockdev/block_backend.h"
#include "blockdev/disk_spec.h"
#include "blockdev/image_file.h"
#include "blockdev/overlay.h"

namespace blockdev {

struct Disk {
  std::unique_ptr<BlockBackend> backend;
  Overlay* overlay = nullptr;         // `backend` seen as what it is; null in mode=ro
  std::vector<ImageIdentity> images;  // from top to bottom
  std::vector<std::string> warnings;  // for the user: what is odd but was accepted
};

// Opens the image chain of `spec` and puts the overlay (or nothing, in mode=ro) above it.
Result<std::unique_ptr<Disk>> open_disk(const DiskSpec& spec, const OverlayOptions& options);

// A snapshot's disk in a new process: the images of `spec`, above them the layer files that
// snapshots wrote, from bottom to top, above these a new overlay (or nothing, in mode=ro). Names
// inside the layer files are not looked at: the manifest says what lies below what. `images` covers
// the layer files too.
Result<std::unique_ptr<Disk>> open_disk_with_layers(const DiskSpec& spec,
                                                    std::span<const std::string> layer_paths,
                                                    const OverlayOptions& options);

// One layer file as a layer, for Overlay::replace_with().
struct OpenedLayer {
  LayerPointer layer;
  ImageIdentity identity;
};
Result<OpenedLayer> open_layer_file(const std::string& path);

}  // namespace blockdev
