// SnapshotMark: what a node of the snapshot tree remembers of the disks.

#pragma once

#include <optional>
#include <vector>

#include "blockdev/overlay.h"
#include "snapshot/manifest.h"
#include "snapshot/store.h"
#include "snapshot/tree.h"

namespace vmm {

// One sealed overlay layer of one disk.
struct MarkedLayer {
  blockdev::LayerPointer layer;
  // Set until the layer is a file: what the file is written from.
  blockdev::SealedPointer sealed;
  // What manifests say of the file; nothing until it is durable.
  std::optional<snapshot::DiskLayer> file;
};

struct DiskMark {
  std::vector<snapshot::BaseImage> bases;  // the user's images, from bottom to top
  blockdev::LayerList images;              // the same as layers, from top to bottom
  std::vector<MarkedLayer> layers;         // above them, from bottom to top

  // The disk's content at T as the overlay wants it: from top to bottom.
  blockdev::LayerList lower() const {
    blockdev::LayerList list;
    for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) {
      list.push_back(layer->layer);
    }
    list.insert(list.end(), images.begin(), images.end());
    return list;
  }
};

struct SnapshotMark final : snapshot::MachineMark {
  std::vector<DiskMark> disks;  // one for each disk of the machine; empty lists for mode=ro
  std::optional<snapshot::Uuid> parent;  // the nearest ancestor that is durable
  // The snapshot's lock: the object must not go while this process may revert to it. Null until the
  // snapshot is durable.
  std::shared_ptr<const snapshot::SnapshotObject> object;
};

inline SnapshotMark& mark_of(const snapshot::SnapshotNode& node) {
  return static_cast<SnapshotMark&>(*node.mark);
}

}  // namespace vmm
