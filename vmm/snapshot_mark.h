// SnapshotMark: what a node of the snapshot tree remembers of the disks.

#pragma once

#include <optional>
#include <vector>

#include "blockdev/overlay.h"
#include "snapshot/manifest.h"
#include "snapshot/store.h"
#include "snapshot/tree.h"
#include "vmm/frozen_file.h"

namespace vmm {

// One layer of one disk that was frozen by a snapshot.
struct MarkedLayer {
  blockdev::LayerPointer layer;
  // mode=overlay: set until the layer is a file: what the file is written from.
  blockdev::SealedPointer sealed;
  // mode=persist: the file that this process wrote. The user's own counts as a layer here, though
  // manifests call it a base.
  FrozenPointer frozen;
  std::optional<snapshot::DiskLayer> file;

  // What manifests say of the file; nothing until it is durable, and for the user's own.
  std::optional<snapshot::DiskLayer> described() const {
    return file || frozen == nullptr ? file : frozen->owned();
  }
};

struct DiskMark {
  std::vector<snapshot::BaseImage> bases;  // the user's images, from bottom to top
  blockdev::LayerList images;              // the same as layers, from top to bottom
  std::vector<MarkedLayer> layers;         // above them, from bottom to top

  // The disk's content at T as the disk wants it: from top to bottom.
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
