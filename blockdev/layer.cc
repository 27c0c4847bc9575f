#include "blockdev/layer.h"

#include <algorithm>
#include <array>

#include "blockdev/sync_engine.h"
#include "vmm/base/check.h"

namespace blockdev {

Result<void> check_layer_count(u64 count) {
  if (count <= kMaxLayerCount) return {};
  return make_error(ErrorKind::unsupported,
                    "a disk of {} images and snapshots on top of each other (at most {})", count,
                    kMaxLayerCount)
      .with_hint("qemu-img convert makes one image of them, to start a new VM from");
}

Lookup::Lookup(const LayerList& layers) : layers_(layers) {
  CHECK(layers.size() <= kMaxLayerCount);
  std::fill_n(below_until_.begin(), layers.size(), u64{0});
}

Result<LocatedExtent> Lookup::at(u64 offset, u64 length, u64 depth) {
  for (; depth < layers_.size(); ++depth) {
    const Layer& layer = *layers_[depth];
    if (offset >= layer.size_bytes()) break;
    if (offset < below_until_[depth]) {
      length = std::min(length, below_until_[depth] - offset);
      continue;
    }
    Extent extent = TRY(layer.map(offset, length));
    CHECK(extent.length_bytes > 0 && extent.length_bytes <= length);
    length = std::min(extent.length_bytes, layer.size_bytes() - offset);
    if (extent.kind == ExtentKind::below) {
      below_until_[depth] = offset + length;
      continue;
    }
    extent.length_bytes = length;
    return LocatedExtent{extent, &layer, depth};
  }
  return LocatedExtent{Extent{.kind = ExtentKind::zero, .length_bytes = length}, nullptr, depth};
}

Result<void> read_layers(const LayerList& layers, u64 offset, std::span<u8> out,
                         ReadScratch& scratch) {
  const iovec whole{out.data(), out.size()};
  IovecCursor to({&whole, 1});
  Lookup lookup(layers);
  u64 left = out.size();
  while (left > 0) {
    const auto [extent, layer, depth] = TRY(lookup.at(offset, left));
    if (extent.kind == ExtentKind::zero) {
      to.fill_zero(extent.length_bytes);
    } else if (extent.kind == ExtentKind::computed) {
      TRY(layer->read_computed(offset, extent.length_bytes, to, scratch));
    } else {
      const std::array<iovec, 1> piece = {
          iovec{out.data() + (out.size() - left), extent.length_bytes}};
      const int error = run_now({IoKind::read, extent.fd, extent.file_offset, piece, 0});
      if (error != 0) return Error::from_errno(error, "read from an image");
      to.skip(extent.length_bytes);
    }
    offset += extent.length_bytes;
    left -= extent.length_bytes;
  }
  return {};
}

}  // namespace blockdev
