// ChainReader: one pass over a stack of layers from front to back, for tools: which layer each run
// comes from, what is known of it without reading it, and its bytes.
//
// Thread: one. REQUIRES for all calls: `layers` stays as it is.

#pragma once

#include <optional>
#include <span>

#include "blockdev/layer.h"

namespace blockdev {

struct ChainRun {
  enum class Kind : u8 {
    absent,    // no layer has it: zeros
    beyond,    // a layer ends before it and hides what lies below: zeros
    zero,      // a layer says zeros
    hole,      // in a file, which has a hole there: zeros
    data,      // in a file
    computed,  // Layer::read_computed()
  };
  Kind kind = Kind::absent;
  u64 length_bytes = 0;
  u64 depth = 0;        // of the layer that has it; `absent`, `beyond`: of the last one asked
  u64 file_offset = 0;  // `hole`, `data`

  bool reads_as_zeros() const { return kind != Kind::data && kind != Kind::computed; }
};

class ChainReader final {
 public:
  explicit ChainReader(const LayerList& layers) : layers_(layers), lookup_(layers) {}

  u64 size_bytes() const { return layers_.front()->size_bytes(); }

  // Between 1 and `length` bytes of one kind from one layer.
  // REQUIRES: whole sectors of the disk; `offset` is not smaller than in the call before.
  Result<ChainRun> run_at(u64 offset, u64 length);

  // Any range; what lies beyond the end of the disk is zeros.
  Result<void> read(u64 offset, std::span<u8> out);

 private:
  const LayerList& layers_;
  Lookup lookup_;
  ReadScratch scratch_;
};

// Whether all bytes are zero.
bool is_zero(std::span<const u8> bytes);

}  // namespace blockdev
