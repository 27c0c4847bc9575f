// ImageChain: the images of a DiskSpec, opened from top to bottom.
//
// What lies below what is said from outside: by backing=. A name inside an image is never followed
// unless backing-dir= allows it, and then only below that directory; otherwise it is compared with
// what the user said, and a difference is a warning.

#pragma once

#include <string>
#include <vector>

#include "blockdev/disk_spec.h"
#include "blockdev/image_file.h"
#include "blockdev/layer.h"

namespace blockdev {

struct ImageChain {
  LayerList layers;                   // from top to bottom
  std::vector<ImageIdentity> images;  // the same order
  std::vector<std::string> warnings;
};

// Longer chains are refused: each level costs a lookup for every read of what is at the bottom.
inline constexpr u64 kMaxChainDepth = 64;

// All for reading, whatever the mode.
Result<ImageChain> open_image_chain(const DiskSpec& spec,
                                    ImageLocking locking = ImageLocking::shared);

// The same with the uppermost image for writing: who writes it reads it too, so it is no layer here.
struct WritableChain {
  ImageFile top;
  ImageChain below;  // `images` has the uppermost too, `layers` may be empty
};
Result<WritableChain> open_writable_chain(const DiskSpec& spec);

}  // namespace blockdev
