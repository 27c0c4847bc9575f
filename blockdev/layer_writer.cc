#include "blockdev/layer_writer.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "blockdev/layer_layout.h"
#include "blockdev/qcow2_extensions.h"
#include "blockdev/qcow2_format.h"
#include "blockdev/stream_writer.h"
#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev {
namespace {

using Layout = LayerLayout;

template <base::WireType T>
std::span<const u8> bytes_of(const T& value) {
  return {reinterpret_cast<const u8*>(&value), sizeof value};
}
std::span<const u8> bytes_of(const std::vector<be64>& values) {
  return {reinterpret_cast<const u8*>(values.data()), values.size() * sizeof(be64)};
}

constexpr u64 kBlocksPerCluster = Layout::kClusterBytes / kBlockBytes;
static_assert(kBlocksPerCluster == 32, "a block is a subcluster");

u64 sealed_bitmap(const OverlayLayer& layer, u64 cluster) {
  u64 bitmap = 0;
  for (u64 i = 0; i < kBlocksPerCluster; ++i) {
    const u64 block = cluster * kBlocksPerCluster + i;
    if (block >= layer.total_blocks()) break;
    switch (layer.block_state(block)) {
      case BlockState::absent: break;
      case BlockState::zero: bitmap |= u64{1} << (32 + i); break;
      case BlockState::partial:
      case BlockState::data: bitmap |= u64{1} << i; break;
    }
  }
  return bitmap;
}

// What is written: which clusters there are, and the L2 bitmap of each (0..31 data, 32..63 zero).
class Source final {
 public:
  // `layers`: `sealed` and what lies below it.
  Source(const OverlayLayer& sealed, LayerList layers)
      : sealed_(sealed), layers_(std::move(layers)) {}

  u64 size_bytes() const { return sealed_.size_bytes(); }
  u64 cluster_count() const { return base::divide_up(size_bytes(), Layout::kClusterBytes); }

  // Calls use(cluster, bitmap) for each cluster with something in it, in order.
  template <class Use>
  Result<void> for_each_cluster(Use use) const {
    for (u64 cluster = 0; cluster < cluster_count(); ++cluster) {
      cluster = sealed_.next_present_block(cluster * kBlocksPerCluster) / kBlocksPerCluster;
      if (cluster >= cluster_count()) break;
      const u64 bitmap = sealed_bitmap(sealed_, cluster);
      if (bitmap != 0) TRY(use(cluster, bitmap));
    }
    return {};
  }

  // Fills `out`; beyond the end of the disk with zeros.
  Result<void> read(u64 offset, std::span<u8> out) {
    const u64 inside = std::min<u64>(out.size(), size_bytes() - offset);
    std::memset(out.data() + inside, 0, out.size() - inside);
    return read_layers(layers_, offset, out.first(inside), scratch_);
  }

 private:
  const OverlayLayer& sealed_;
  const LayerList layers_;
  ReadScratch scratch_;
};

constexpr bool has_data(u64 bitmap) { return (bitmap & 0xffffffff) != 0; }

Result<Layout> plan_layout(const Source& source) {
  Layout layout;
  layout.l1_entries = base::divide_up(source.cluster_count(), Layout::kEntriesPerL2);
  layout.l1_clusters = base::divide_up(layout.l1_entries * sizeof(be64), Layout::kClusterBytes);
  TRY(source.for_each_cluster([&](u64 cluster, u64 bitmap) -> Result<void> {
    const u64 l1_index = cluster / Layout::kEntriesPerL2;
    if (layout.l2_indices.empty() || layout.l2_indices.back() != l1_index) {
      layout.l2_indices.push_back(l1_index);
    }
    if (has_data(bitmap)) ++layout.data_clusters;
    return {};
  }));
  layout.size_refcounts();
  return layout;
}

Result<void> append_extension(StreamWriter& writer, u32 type, std::span<const u8> data) {
  qcow2::WireExtension extension;
  extension.type = type;
  extension.length = static_cast<u32>(data.size());
  TRY(writer.append(bytes_of(extension)));
  TRY(writer.append(data));
  constexpr u8 kPadding[8] = {};
  return writer.append(std::span(kPadding).first(base::align_up(data.size(), 8) - data.size()));
}

std::span<const u8> text_bytes(std::string_view text) {
  return {reinterpret_cast<const u8*>(text.data()), text.size()};
}

// The names of the features that this header may need, for readers that do not know them.
std::vector<u8> feature_names() {
  const auto name = [](u8 bit, std::string_view text) {
    qcow2::WireFeatureName entry;
    entry.type = 0;
    entry.bit = bit;
    std::copy(text.begin(), text.end(), entry.name);
    return entry;
  };
  const qcow2::WireFeatureName entries[] = {name(0, "dirty bit"), name(1, "corrupt bit"),
                                            name(4, "extended L2 entries")};
  const u8* first = reinterpret_cast<const u8*>(entries);
  return {first, first + sizeof entries};
}

Result<void> write_header(StreamWriter& writer, const Layout& layout, u64 size_bytes,
                          const BackingName& backing) {
  qcow2::WireHeader header;
  header.magic = qcow2::kMagic;
  header.version = 3;
  header.cluster_bits = Layout::kClusterBits;
  header.size = size_bytes;
  header.l1_size = static_cast<u32>(layout.l1_entries);
  header.l1_table_offset = layout.l1_offset();
  header.refcount_table_offset = layout.refcount_table_offset();
  header.refcount_table_clusters = static_cast<u32>(layout.refcount_table_clusters);
  header.incompatible_features = qcow2::kExtendedL2;
  header.refcount_order = 4;
  header.header_length = sizeof header;
  const std::vector<u8> names = feature_names();
  const std::string_view format = image_format_name(backing.format);
  header.backing_file_offset = sizeof header + 3 * sizeof(qcow2::WireExtension) +
                               base::align_up(format.size(), 8) + base::align_up(names.size(), 8);
  header.backing_file_size = static_cast<u32>(backing.path.size());
  TRY(writer.append(bytes_of(header)));
  TRY(append_extension(writer, qcow2::kExtensionBackingFormat, text_bytes(format)));
  TRY(append_extension(writer, qcow2::kExtensionFeatureNames, names));
  TRY(append_extension(writer, qcow2::kExtensionEnd, {}));
  CHECK(writer.offset() == header.backing_file_offset);
  return writer.append(text_bytes(backing.path));
}

Result<void> write_refcounts(StreamWriter& writer, const Layout& layout) {
  TRY(writer.skip_to(layout.refcount_table_offset()));
  for (u64 i = 0; i < layout.refcount_block_clusters; ++i) {
    TRY(writer.append(bytes_of(be64(layout.refcount_blocks_offset() + i * Layout::kClusterBytes))));
  }
  TRY(writer.skip_to(layout.refcount_blocks_offset()));
  for (u64 i = 0; i < layout.total_clusters(); ++i) TRY(writer.append(bytes_of(be16(1))));
  return {};
}

Result<void> write_l1(StreamWriter& writer, const Layout& layout) {
  std::vector<be64> table(layout.l1_entries);
  for (u64 i = 0; i < layout.l2_indices.size(); ++i) {
    table[layout.l2_indices[i]] = (layout.l2_offset() + i * Layout::kClusterBytes) | qcow2::kCopied;
  }
  TRY(writer.skip_to(layout.l1_offset()));
  return writer.append(bytes_of(table));
}

Result<void> write_l2_tables(StreamWriter& writer, const Layout& layout, const Source& source) {
  std::vector<be64> table;
  u64 table_number = 0;
  u64 data_number = 0;
  TRY(writer.skip_to(layout.l2_offset()));
  const auto add_entry = [&](u64 cluster, u64 bitmap) -> Result<void> {
    if (layout.l2_indices[table_number] != cluster / Layout::kEntriesPerL2) {
      TRY(writer.append(bytes_of(table)));
      table.clear();
      ++table_number;
    }
    table.resize(2 * Layout::kEntriesPerL2);
    const u64 index = cluster % Layout::kEntriesPerL2;
    if (has_data(bitmap)) {
      const u64 offset = layout.data_offset() + data_number++ * Layout::kClusterBytes;
      table[2 * index] = offset | qcow2::kCopied;
    }
    table[2 * index + 1] = bitmap;
    return {};
  };
  TRY(source.for_each_cluster(add_entry));
  return writer.append(bytes_of(table));
}

Result<void> write_data(StreamWriter& writer, const Layout& layout, Source& source) {
  std::vector<u8> buffer(Layout::kClusterBytes);
  u64 data_number = 0;
  return source.for_each_cluster([&](u64 cluster, u64 bitmap) -> Result<void> {
    if (!has_data(bitmap)) return {};
    const u64 host = layout.data_offset() + data_number++ * Layout::kClusterBytes;
    u32 left = static_cast<u32>(bitmap);
    while (left != 0) {
      const u32 first = static_cast<u32>(std::countr_zero(left));
      const u32 count = static_cast<u32>(std::countr_one(left >> first));
      const u64 within = first * Layout::kSubclusterBytes;
      const std::span<u8> run = std::span(buffer).first(count * Layout::kSubclusterBytes);
      TRY(source.read(cluster * Layout::kClusterBytes + within, run));
      TRY(writer.skip_to(host + within));
      TRY(writer.append(run));
      left &= count + first == 32 ? (u32{1} << first) - 1 : ~(((u32{1} << count) - 1) << first);
    }
    return {};
  });
}

}  // namespace

Result<LayerFile> write_layer(const OverlayLayer& sealed, const LayerList& below,
                              const BackingName& backing, const base::Fd& fd) {
  TRY(qcow2::check_backing_name(backing.path));
  // The caller keeps `sealed` alive: a pointer that owns nothing is enough here.
  LayerList layers = {LayerPointer(LayerPointer(), &sealed)};
  layers.insert(layers.end(), below.begin(), below.end());
  Source source(sealed, std::move(layers));
  const Layout layout = TRY(plan_layout(source));
  StreamWriter writer(fd);
  TRY(write_header(writer, layout, source.size_bytes(), backing));
  TRY(write_refcounts(writer, layout));
  TRY(write_l1(writer, layout));
  TRY(write_l2_tables(writer, layout, source));
  TRY(write_data(writer, layout, source));
  TRY(writer.skip_to(layout.total_clusters() * Layout::kClusterBytes));
  TRY(writer.finish());
  return LayerFile{writer.offset(), writer.checksum()};
}

}  // namespace blockdev
