#include "vmm/memory/page_table.h"

#include <array>
#include <cstring>

#include "vmm/base/ranges.h"

namespace memory {
namespace {

constexpr std::size_t kBlockEntries = 8;
using Block = std::array<u64, kBlockEntries>;

Block block_at(const u8* page, std::size_t offset) {
  Block block;
  std::memcpy(block.data(), page + offset, sizeof block);
  return block;
}

// Present (bit 0) and accessed (bit 5), in an entry of 8 bytes or in the upper of two of 4.
bool could_be_used(u64 entry) {
  constexpr u64 kLowestBits = 0x0000'0001'0000'0001;
  return (entry & (entry >> 5) & kLowestBits) != 0;
}

}  // namespace

bool rewrite_page(u8* page, const u8* then) {
  bool is_used = false;
  for (std::size_t offset = 0; offset < base::kPageBytes; offset += sizeof(Block)) {
    const Block before = block_at(page, offset);
    const Block after = block_at(then, offset);
    u64 changes = 0;
    for (std::size_t i = 0; i < kBlockEntries; ++i) changes |= before[i] ^ after[i];
    if (changes == 0) continue;
    for (std::size_t i = 0; i < kBlockEntries; ++i) {
      is_used |= before[i] != after[i] && could_be_used(before[i]);
    }
    std::memcpy(page + offset, after.data(), sizeof after);
  }
  return is_used;
}

}  // namespace memory
