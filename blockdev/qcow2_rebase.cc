#include "blockdev/qcow2_rebase.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "blockdev/block_backend.h"
#include "blockdev/io_transfer.h"
#include "blockdev/qcow2_extensions.h"
#include "blockdev/qcow2_header.h"
#include "blockdev/qcow2_header_writer.h"
#include "blockdev/qcow2_map.h"
#include "blockdev/qcow2_refcounts.h"
#include "blockdev/qcow2_repair.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

struct FirstCluster {
  Header header;
  std::vector<u8> bytes;
};

Result<FirstCluster> read_first(const base::Fd& fd) {
  const u64 file_bytes = TRY(base::file_size(fd));
  FirstCluster first;
  first.header = TRY(read_header(fd, file_bytes));
  first.bytes.resize(first.header.cluster_bytes());
  const u64 there = std::min<u64>(first.bytes.size(), file_bytes);
  TRY(base::read_exactly(fd, std::span(first.bytes).first(there), 0));
  return first;
}

Result<void> check_not_marked(const Header& header) {
  if ((header.wire.incompatible_features & kCorrupt) == 0) return {};
  return make_error(ErrorKind::corrupt, "it is marked corrupt")
      .with_hint("quicksave image check -r all FILE");
}

// What the tables say must be right before some of it is forgotten.
Result<Header> check_sound(const base::Fd& fd) {
  const CheckReport found = TRY(check_image(fd));
  if (found.corruptions + found.check_errors != 0) {
    return make_error(ErrorKind::corrupt, "{} corruptions were found in it",
                      found.corruptions + found.check_errors)
        .with_hint("quicksave image check -r all FILE");
  }
  const u64 file_bytes = TRY(base::file_size(fd));
  Header header = TRY(read_header(fd, file_bytes));
  TRY(check_not_marked(header));
  if (header.snapshot_count != 0) {
    return make_error(ErrorKind::unsupported, "its {} internal snapshots share its clusters",
                      header.snapshot_count)
        .with_hint("qemu-img snapshot -d removes one");
  }
  return header;
}

// Gives clusters that nobody uses back to the host, where the file system can.
Result<void> punch_free_clusters(const base::Fd& fd, u64 end) {
  const u64 file_bytes = TRY(base::file_size(fd));
  const WireHeader wire = TRY(read_header_to_check(fd, file_bytes));
  const StatedRefcounts stated = TRY(StatedRefcounts::create(fd, file_bytes, wire));
  const u64 per_block = stated.entries_per_block();
  const u64 clusters = end >> wire.cluster_bits;
  std::vector<u8> block;
  u64 first_free = 0;  // of the run before `cluster`
  for (u64 cluster = 0; cluster <= clusters; ++cluster) {
    if (cluster % per_block == 0) block = TRY(stated.block(cluster / per_block));
    const bool is_free =
        cluster < clusters && (block.empty() || stated.value_in(block, cluster % per_block) == 0);
    if (is_free) continue;
    const auto offset = static_cast<off_t>(first_free << wire.cluster_bits);
    const auto length = static_cast<off_t>((cluster - first_free) << wire.cluster_bits);
    first_free = cluster + 1;
    if (length == 0) continue;
    if (::fallocate(fd.get(), kPunchMode, offset, length) == 0) continue;
    if (errno == EOPNOTSUPP) return {};
    return errno_error("punch a hole");
  }
  return {};
}

// Lowers the refcounts of what nothing refers to any more, and gives its space back.
Result<void> free_unused(const base::Fd& fd) {
  const RepairReport report = TRY(repair_image(fd, RepairScope::leaks));
  const u64 end = report.after.image_end_offset;
  const u64 file_bytes = TRY(base::file_size(fd));
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return errno_error("stat an image");
  const bool is_too_long = S_ISREG(status.st_mode) && end < file_bytes;  // a device stays as it is
  if (is_too_long && ::ftruncate(fd.get(), static_cast<off_t>(end)) != 0) {
    return errno_error("make the file shorter");
  }
  TRY(punch_free_clusters(fd, std::min(end, file_bytes)));
  return base::sync_file(fd);
}

Result<void> zero_range(const base::Fd& fd, u64 offset, u64 length) {
  const std::vector<u8> zeros(std::min<u64>(length, base::kMiB));
  for (u64 done = 0; done < length;) {
    const u64 piece = std::min<u64>(zeros.size(), length - done);
    TRY(base::write_exactly(fd, std::span(zeros).first(piece), offset + done));
    done += piece;
  }
  return {};
}

Result<void> write_synced(const base::Fd& fd, std::span<const u8> bytes, u64 offset) {
  TRY(base::write_exactly(fd, bytes, offset));
  return base::sync_file(fd);
}

// --- the backing file ---

// The header as it is to be, but for where the name lies.
HeaderParts parts_with(const FirstCluster& first, const std::string& name,
                       const std::string& format) {
  HeaderParts parts = take_header_apart(first.header.wire, first.bytes);
  const auto is_format = [](const RawExtension& extension) {
    return extension.type == kExtensionBackingFormat;
  };
  // In its old place, so that what follows it need not move.
  auto at = std::ranges::find_if(parts.extensions, is_format);
  if (format.empty()) {
    std::erase_if(parts.extensions, is_format);
  } else if (at != parts.extensions.end()) {
    *at = backing_format_extension(format);
  } else {
    parts.extensions.insert(parts.extensions.begin(), backing_format_extension(format));
  }
  parts.backing_name = name;
  // What is above changes what every bitmap says (and nobody here keeps them).
  if (parts.wire.version >= 3) parts.wire.autoclear_features = 0;
  return parts;
}

// A place for the name where neither the old header nor the new one has anything; 0: there is none.
u64 free_place(const FirstCluster& first, u64 new_area_end, u64 old_area_end, u64 name_bytes) {
  const u64 old_name = first.header.wire.backing_file_offset;
  const u64 old_bytes = first.header.wire.backing_file_size;
  const u64 behind_areas = base::align_up(std::max(new_area_end, old_area_end), 8);
  const u64 behind_name = base::align_up(std::max(behind_areas, old_name + old_bytes), 8);
  for (const u64 place : {behind_areas, behind_name}) {
    const bool is_free = !base::overlaps(place, name_bytes, old_name, old_bytes);
    if (is_free && base::contains(first.bytes.size(), place, name_bytes)) return place;
  }
  return 0;
}

// Header and extensions without the name.
struct HeaderArea {
  std::vector<u8> bytes;
  bool is_one_write = false;  // nothing behind its first sector changes
};

Result<HeaderArea> compose_area(const FirstCluster& first, HeaderParts parts) {
  const u64 name_bytes = parts.backing_name.size();
  HeaderArea area;
  area.bytes = TRY(compose_header(std::move(parts)));
  area.bytes.resize(area.bytes.size() - name_bytes);
  const u64 sector = std::min<u64>(kSectorBytes, area.bytes.size());
  area.is_one_write =
      std::equal(area.bytes.begin() + static_cast<std::ptrdiff_t>(sector), area.bytes.end(),
                 first.bytes.begin() + static_cast<std::ptrdiff_t>(sector));
  return area;
}

// All at once, as qemu-img does: where there is no room to be careful in.
Result<void> write_all_at_once(const base::Fd& fd, const FirstCluster& first,
                               const HeaderParts& parts) {
  std::vector<u8> all = TRY(compose_header(parts));
  const u64 old_end = first.header.wire.backing_file_offset + first.header.wire.backing_file_size;
  all.resize(std::max<u64>(all.size(), old_end));
  return write_synced(fd, all, 0);
}

}  // namespace

Result<void> set_backing_file(const base::Fd& fd, const std::string& name,
                              const std::string& format) {
  TRY(check_backing_name(name));
  const FirstCluster first = TRY(read_first(fd));
  TRY(check_not_marked(first.header));
  HeaderParts parts = parts_with(first, name, format);
  HeaderArea area = TRY(compose_area(first, parts));
  if (!area.is_one_write) {
    // The extensions would move. The table of names is for people: without it they need not, or
    // end in the first sector.
    std::erase_if(parts.extensions, [](const RawExtension& extension) {
      return extension.type == kExtensionFeatureNames;
    });
    area = TRY(compose_area(first, parts));
  }
  HeaderParts old_parts = take_header_apart(first.header.wire, first.bytes);
  old_parts.backing_name.clear();
  const u64 old_area_bytes = TRY(compose_header(old_parts)).size();
  const u64 place =
      name.empty() ? 0 : free_place(first, area.bytes.size(), old_area_bytes, name.size());
  const bool has_place = name.empty() || place != 0;
  if (!area.is_one_write || !has_place || first.bytes.size() <= kSectorBytes) {
    return write_all_at_once(fd, first, parts);
  }
  const std::span<const u8> name_bytes(reinterpret_cast<const u8*>(name.data()), name.size());
  if (!name.empty()) TRY(write_synced(fd, name_bytes, place));
  const be64 offset = place;
  std::memcpy(area.bytes.data() + offsetof(WireHeader, backing_file_offset), &offset,
              sizeof offset);
  const u64 sector = std::min<u64>(kSectorBytes, area.bytes.size());
  return write_synced(fd, std::span(area.bytes).first(sector), 0);
}

Result<void> set_backing_name(const base::Fd& fd, const std::string& name) {
  const u64 file_bytes = TRY(base::file_size(fd));
  const Header header = TRY(read_header(fd, file_bytes));
  if (header.backing_name == name) return {};
  return set_backing_file(fd, name, header.backing_format);
}

Result<void> check_can_be_emptied(const base::Fd& fd) {
  TRY(check_sound(fd));
  return {};
}

Result<void> empty_image(const base::Fd& fd) {
  const Header header = TRY(check_sound(fd));
  TRY(clear_autoclear_bits(fd));
  // Each entry that is cleared leaves the disk as it is: the backing file holds the same.
  TRY(zero_range(fd, header.l1_offset, u64{header.wire.l1_size} * sizeof(be64)));
  TRY(base::sync_file(fd));
  return free_unused(fd);
}

namespace {

// Entries of the last L2 table that lie behind the disk.
Result<void> clear_l2_tail(const base::Fd& fd, const Geometry& geometry, u64 l2_offset,
                           u64 first_entry) {
  const u64 from = first_entry * geometry.entry_bytes();
  return zero_range(fd, l2_offset + from, geometry.cluster_bytes() - from);
}

}  // namespace

Result<void> shrink_image(const base::Fd& fd, u64 size_bytes) {
  const Header header = TRY(check_sound(fd));
  TRY(clear_autoclear_bits(fd));
  const Geometry geometry(header.cluster_bits, header.has_extended_l2);
  const be64 size = size_bytes;
  TRY(write_synced(fd, {reinterpret_cast<const u8*>(&size), sizeof size},
                   offsetof(WireHeader, size)));
  const u64 clusters = base::divide_up(size_bytes, geometry.cluster_bytes());
  const u64 kept_tables = base::divide_up(clusters, geometry.entries_per_l2_table());
  TRY(zero_range(fd, header.l1_offset + kept_tables * sizeof(be64),
                 (header.wire.l1_size - kept_tables) * sizeof(be64)));
  const u64 kept_entries = clusters % geometry.entries_per_l2_table();
  if (kept_entries != 0) {
    be64 l1_entry;
    TRY(base::read_exactly(fd, {reinterpret_cast<u8*>(&l1_entry), sizeof l1_entry},
                           header.l1_offset + (kept_tables - 1) * sizeof(be64)));
    const u64 l2_offset = l1_entry & kOffsetMask;
    if (l2_offset != 0) TRY(clear_l2_tail(fd, geometry, l2_offset, kept_entries));
  }
  TRY(base::sync_file(fd));
  return free_unused(fd);
}

}  // namespace blockdev::qcow2
