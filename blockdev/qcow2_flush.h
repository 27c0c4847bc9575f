// FlushPlan: what one flush writes, copied while the image's lock was held.

#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "blockdev/io_engine.h"
#include "blockdev/qcow2_allocator.h"
#include "blockdev/qcow2_tables.h"

namespace blockdev::qcow2 {

// Writes that may go to the file in any order among themselves.
class WriteBatch final {
 public:
  // Room for `bytes` that are written at `offset`.
  std::span<u8> add(u64 offset, u64 bytes) {
    writes_.push_back({offset, std::vector<u8>(bytes)});
    return writes_.back().bytes;
  }
  bool is_empty() const { return writes_.empty(); }
  // Valid until the next add().
  std::span<const IoOperation> operations(int fd) {
    buffers_.clear();
    operations_.clear();
    buffers_.reserve(writes_.size());
    for (Write& write : writes_) {
      buffers_.push_back({write.bytes.data(), write.bytes.size()});
      operations_.push_back({IoKind::write, fd, write.offset, {&buffers_.back(), 1}});
    }
    return operations_;
  }

 private:
  struct Write {
    u64 offset;
    std::vector<u8> bytes;
  };
  std::vector<Write> writes_;
  std::vector<iovec> buffers_;
  std::vector<IoOperation> operations_;
};

struct FlushPlan {
  WriteBatch first;   // refcounts; blocks and tables that nothing leads to yet
  WriteBatch links;   // entries of the refcount table
  WriteBatch second;  // entries that lead to what the first batch made durable
  std::optional<TableMove> move;
  std::vector<u64> frees;

  // What to do again when it fails, and how far it came.
  bool is_first_durable = false;
  bool is_moved = false;  // the header names the new refcount table
  struct Pieces {
    RefcountBlock* block;
    std::vector<bool> dirty;
    bool was_new;
  };
  std::vector<Pieces> blocks;
  std::vector<u64> linked;  // the new blocks that it leads to
  std::vector<L2Slice*> slices;
  std::vector<u64> l1_indices;
  std::vector<u64> new_tables;  // their L1 indices

  bool is_empty() const {
    return first.is_empty() && links.is_empty() && second.is_empty() && frees.empty() && !move;
  }
};

}  // namespace blockdev::qcow2
