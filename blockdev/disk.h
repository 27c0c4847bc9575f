// Disk: a DiskSpec opened: its images, locked, and the backend that the device talks to.

#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "blockdev/block_backend.h"
#include "blockdev/disk_options.h"
#include "blockdev/disk_spec.h"
#include "blockdev/durable_disk.h"
#include "blockdev/image_file.h"

namespace blockdev {

struct Disk {
  std::unique_ptr<BlockBackend> backend;
  // `backend` seen as what it is: one of them is set, none in mode=ro.
  Overlay* overlay = nullptr;
  DurableDisk* durable = nullptr;
  std::vector<ImageIdentity> images;  // from top to bottom
  std::vector<std::string> warnings;  // for the user: what is odd but was accepted
};

// Opens the image chain of `spec` and puts the overlay above it (in mode=ro nothing; in
// mode=persist its uppermost image is written).
Result<std::unique_ptr<Disk>> open_disk(const DiskSpec& spec, const DiskOptions& options);

// A snapshot's disk in a new process: the images of `spec`, above them the layer files that
// snapshots wrote, from bottom to top, above these a new overlay (or nothing, in mode=ro). Names
// inside the layer files are not looked at: the manifest says what lies below what. `images` covers
// the layer files too.
Result<std::unique_ptr<Disk>> open_disk_with_layers(const DiskSpec& spec,
                                                    std::span<const std::string> layer_paths,
                                                    const DiskOptions& options);

// The same for mode=persist: above the layer files lies `top`, an empty image made for it, and is
// written.
Result<std::unique_ptr<Disk>> open_disk_below(const DiskSpec& spec,
                                              std::span<const std::string> layer_paths,
                                              ImageFile top, const DiskOptions& options);

// One layer file as a layer, for Overlay::replace_with().
struct OpenedLayer {
  LayerPointer layer;
  ImageIdentity identity;
};
Result<OpenedLayer> open_layer_file(const std::string& path);

}  // namespace blockdev
