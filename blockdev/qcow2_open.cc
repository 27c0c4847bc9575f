#include "blockdev/qcow2_open.h"

#include <endian.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "blockdev/qcow2_map.h"
#include "blockdev/qcow2_refcount_cache.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

constexpr std::string_view kCheckHint = "quicksave image check -r all FILE repairs what it can";

template <class... Args>
Error damaged(fmt::format_string<Args...> format, Args&&... args) {
  return make_error(ErrorKind::corrupt, format, std::forward<Args>(args)...)
      .with_hint(std::string(kCheckHint));
}

Result<void> check_is_writable(const Header& header) {
  const u64 features = header.wire.incompatible_features;
  if (header.snapshot_count > 0) {
    return make_error(ErrorKind::unsupported,
                      "it has {} internal snapshots, so it is not written here",
                      header.snapshot_count)
        .with_hint("qemu-img snapshot -d NAME FILE deletes one; mode=overlay only reads the image");
  }
  if ((features & kCorrupt) != 0) return damaged("it is marked corrupt");
  if ((features & kDirty) != 0) {
    return damaged("it was not closed properly (dirty bit), so its refcounts may be wrong");
  }
  return {};
}

Result<std::vector<u64>> read_words(const base::Fd& fd, WaitingIo& io, u64 offset, u64 count,
                                    std::string_view what) {
  // Turned round in place: a table has thousands of entries, and each new overlay is opened here.
  std::vector<u64> words(count);
  const int error =
      io.read(fd.get(), offset, {reinterpret_cast<u8*>(words.data()), count * sizeof(u64)});
  if (error != 0) return Error::from_errno(error, what);
  for (u64& word : words) word = be64toh(word);
  return words;
}

// Collects where metadata lies; says what lies where something else does.
class MetadataCollector final {
 public:
  MetadataCollector(u32 cluster_bits, u64 file_bytes)
      : cluster_bits_(cluster_bits), file_bytes_(file_bytes) {}

  void add(u64 offset, u64 bytes) {
    const u64 count = base::divide_up(bytes, u64{1} << cluster_bits_);
    for (u64 i = 0; i < count; ++i) clusters_.push_back((offset >> cluster_bits_) + i);
  }
  Result<void> add_cluster(u64 offset, std::string_view what) {
    if (offset >= file_bytes_) {
      return damaged("{} at {:#x} outside file (size {:#x})", what, offset, file_bytes_);
    }
    add(offset, 1);
    return {};
  }
  Result<std::vector<u64>> take() {
    std::sort(clusters_.begin(), clusters_.end());
    const auto twice = std::adjacent_find(clusters_.begin(), clusters_.end());
    if (twice != clusters_.end()) {
      return damaged("two tables lie at {:#x}", *twice << cluster_bits_);
    }
    return std::move(clusters_);
  }

 private:
  u32 cluster_bits_;
  u64 file_bytes_;
  std::vector<u64> clusters_;
};

Result<std::vector<u64>> collect_metadata(const OpenedTables& opened, const Geometry& geometry) {
  const WireHeader& wire = opened.header.wire;
  MetadataCollector metadata(geometry.cluster_bits(), opened.file_bytes);
  metadata.add(0, 1);
  metadata.add(wire.l1_table_offset, opened.l1.size() * sizeof(u64));
  metadata.add(wire.refcount_table_offset, opened.refcount_table.size() * sizeof(u64));
  for (const u64 entry : opened.l1) {
    const Result<u64> table = check_l1_entry(geometry, entry);
    if (!table) return damaged("{}", table.error().message());
    if (*table == 0) continue;
    if ((entry & kCopied) == 0) return damaged("L1 entry {:#018x}: COPIED is not set", entry);
    TRY(metadata.add_cluster(*table, "L2 table"));
  }
  for (const u64 block : opened.refcount_table) {
    if (block != 0) TRY(metadata.add_cluster(block, "refcount block"));
  }
  return metadata.take();
}

// So many counts of a refcount block reach to its last byte that is not 0.
u64 counts_to_last_byte(std::span<const u8> block, u32 refcount_order) {
  u64 bytes = block.size();
  while (bytes > 0 && block[bytes - 1] == 0) --bytes;
  return base::divide_up(bytes * 8, u64{1} << refcount_order);
}

// The cluster behind the last one that has a refcount, or one in front of that.
Result<u64> find_end(const base::Fd& fd, WaitingIo& io, const OpenedTables& opened) {
  // A hostile image may have any number of empty blocks. To start too low costs only a search.
  constexpr u32 kMaxBlocks = 16;
  const u32 cluster_bits = opened.header.cluster_bits;
  RefcountCache counts(cluster_bits, opened.header.wire.refcount_order, opened.refcount_table);
  u64 block = opened.refcount_table.size();
  for (u32 looked_at = 0; block > 0 && looked_at < kMaxBlocks;) {
    --block;
    const u64 offset = counts.block_offset(block);
    if (offset == 0) continue;
    ++looked_at;
    std::vector<u8> bytes(u64{1} << cluster_bits);
    const int error = io.read(fd.get(), offset, bytes);
    if (error != 0) return Error::from_errno(error, "refcount block");
    u64 i = counts_to_last_byte(bytes, opened.header.wire.refcount_order);
    counts.insert(block, std::move(bytes));
    const u64 first = block * counts.clusters_per_block();
    for (; i > 0; --i) {
      if (counts.get(first + i - 1) != 0) return first + i;
    }
  }
  return block * counts.clusters_per_block();
}

Result<Allocator::Start> find_start(const base::Fd& fd, WaitingIo& io, const OpenedTables& opened) {
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return errno_error("stat");
  // A device holds what was written to it before it held this image.
  if (!S_ISREG(status.st_mode)) return Allocator::Start{.cursor = 0, .fresh_cluster = ~u64{0}};
  return Allocator::Start{
      .cursor = TRY(find_end(fd, io, opened)),
      .fresh_cluster = base::divide_up(opened.file_bytes, opened.header.cluster_bytes())};
}

}  // namespace

Result<OpenedTables> open_for_writing(const base::Fd& fd, WaitingIo& io) {
  const u64 file_bytes = TRY(base::file_size(fd));
  Header header = TRY(read_header(fd, file_bytes));
  TRY(check_is_writable(header));
  const WireHeader wire = header.wire;
  const Geometry geometry(header.cluster_bits, header.has_extended_l2);
  OpenedTables opened;
  opened.header = std::move(header);
  opened.file_bytes = file_bytes;
  // The table may have more entries than the disk needs. They stay.
  opened.l1 = TRY(read_words(fd, io, wire.l1_table_offset, wire.l1_size, "L1 table"));
  const u64 refcount_entries =
      (u64{wire.refcount_table_clusters} << wire.cluster_bits) / sizeof(be64);
  opened.refcount_table =
      TRY(read_words(fd, io, wire.refcount_table_offset, refcount_entries, "refcount table"));
  opened.metadata = TRY(collect_metadata(opened, geometry));
  opened.start = TRY(find_start(fd, io, opened));
  const int error = io.read(fd.get(), 0, opened.header_sector);
  if (error != 0) return Error::from_errno(error, "header");
  return opened;
}

}  // namespace blockdev::qcow2
