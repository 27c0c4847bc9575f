// Layer: one immutable level of a disk's content, as a function from guest offset to Extent.
//
// A disk is a stack of layers. Each says for every byte: look below, zero, lies in this file at
// this offset, or "ask me" (compressed clusters, memory). Where a byte lives is decided here,
// without touching the data; moving it is the queue's and its engine's work.
//
// Invariant: what map() says of a range never changes while anybody holds the layer.
// Thread: all calls from any thread.

#pragma once

#include <array>
#include <memory>
#include <vector>

#include "blockdev/iovec_cursor.h"
#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace blockdev {
namespace qcow2 {
class Decompressor;
}

enum class ExtentKind : u8 {
  below,     // not in this layer
  zero,      // zeros, whatever lies below
  file,      // `fd` at `file_offset`; bytes past the end of the file read as zeros
  computed,  // Layer::read_computed()
};

struct Extent {
  ExtentKind kind = ExtentKind::zero;
  u64 length_bytes = 0;
  int fd = -1;  // open as long as the layer lives
  u64 file_offset = 0;
};

struct ByteRange {
  u64 offset = 0;
  u64 length = 0;
};

// What a reader keeps between calls, so that a compressed cluster read in small pieces is
// decompressed once. One for each thread.
struct ReadScratch {
  std::shared_ptr<const void> owner;  // whose cluster `plain` holds; null: nobody's
  u64 cluster_offset = 0;
  u64 entry = 0;  // the owner's word for the cluster, where that can change
  std::vector<u8> plain;
  std::vector<u8> packed;
  std::shared_ptr<qcow2::Decompressor> decompressor;  // made when first needed
};

class Layer {
 public:
  virtual ~Layer() = default;

  virtual u64 size_bytes() const = 0;  // multiple of 512
  // The extent at `offset`: between 1 and `length` bytes of one kind.
  // REQUIRES: offset < size_bytes(), length > 0; the answer may reach past size_bytes().
  // An Error means that this place of the image cannot be read, not that the layer is gone.
  virtual Result<Extent> map(u64 offset, u64 length) const = 0;
  // REQUIRES: map() says `computed` for the range.
  virtual Result<void> read_computed(u64 offset, u64 length, IovecCursor& to,
                                     ReadScratch& scratch) const = 0;
  // 4 KiB blocks that are in this process's memory alone, and lost when the layer goes.
  virtual u64 volatile_block_count() const { return 0; }
  // What the layer keeps of its own tables from now on, about; a cache of small clusters is not
  // made smaller. REQUIRES: nobody reads the layer yet.
  virtual void limit_cache(u64 /*bytes*/) const {}
};

using LayerPointer = std::shared_ptr<const Layer>;
// From top to bottom, at most kMaxLayerCount.
using LayerList = std::vector<LayerPointer>;

// Images and layers of snapshots together. Each costs a descriptor (Debian gives a process 1024)
// and a lookup for every read of what is at the bottom.
inline constexpr u64 kMaxLayerCount = 256;
Result<void> check_layer_count(u64 count);

// What the whole stack says of `offset`: the first layer that does not say `below`. Beyond a
// layer's end everything is zero, whatever lies below it: a backing file shorter than its overlay
// does not let a deeper one shine through (as QEMU has it).
struct LocatedExtent {
  Extent extent;
  const Layer* layer = nullptr;  // set for `computed`
  u64 depth = 0;  // which layer decided: the one that has it, the one that ends before it, or none
};

// One pass over a stack from front to back. It remembers how far each layer is known to say
// `below`: a layer with a long run of that is not asked again for every extent under it, which
// would look through the same run each time. REQUIRES: `layers` stays as it is.
class Lookup final {
 public:
  explicit Lookup(const LayerList& layers);
  // The layers above `depth` are known to have nothing there.
  // REQUIRES: `offset` is not smaller than in the call before.
  Result<LocatedExtent> at(u64 offset, u64 length, u64 depth = 0);

 private:
  const LayerList& layers_;
  std::array<u64, kMaxLayerCount> below_until_;  // of the layers that there are
};

// Reads through the stack with plain system calls, on the caller's thread.
Result<void> read_layers(const LayerList& layers, u64 offset, std::span<u8> out,
                         ReadScratch& scratch);

}  // namespace blockdev
