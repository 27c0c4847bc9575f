#include "blockdev/qcow2_header_writer.h"

#include <algorithm>
#include <cstring>

#include "vmm/base/planted_fault.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

enum class FeatureType : u8 { incompatible, compatible, autoclear };

WireFeatureName feature_name(FeatureType type, u8 bit, std::string_view text) {
  WireFeatureName entry;
  entry.type = static_cast<u8>(type);
  entry.bit = bit;
  std::copy(text.begin(), text.end(), entry.name);
  return entry;
}

template <base::WireType T>
void append(std::vector<u8>& out, const T& value) {
  const size_t end = out.size();
  out.resize(end + sizeof value);
  std::memcpy(out.data() + end, &value, sizeof value);
}

void append_extension(std::vector<u8>& out, const RawExtension& extension) {
  WireExtension head;
  head.type = extension.type;
  head.length = static_cast<u32>(extension.data.size());
  append(out, head);
  out.insert(out.end(), extension.data.begin(), extension.data.end());
  out.resize(base::align_up(out.size(), 8));
}

}  // namespace

RawExtension backing_format_extension(std::string_view format) {
  const u32 type = base::planted("wrong-magic") ? 0xe279268f : u32{kExtensionBackingFormat};
  return {type, {format.begin(), format.end()}};
}

RawExtension feature_names_extension() {
  const WireFeatureName names[] = {
      feature_name(FeatureType::incompatible, 0, "dirty bit"),
      feature_name(FeatureType::incompatible, 1, "corrupt bit"),
      feature_name(FeatureType::incompatible, 2, "external data file"),
      feature_name(FeatureType::incompatible, 3, "compression type"),
      feature_name(FeatureType::incompatible, 4, "extended L2 entries"),
      feature_name(FeatureType::compatible, 0, "lazy refcounts"),
      feature_name(FeatureType::autoclear, 0, "bitmaps"),
      feature_name(FeatureType::autoclear, 1, "raw external data"),
  };
  const u8* first = reinterpret_cast<const u8*>(names);
  return {kExtensionFeatureNames, {first, first + sizeof names}};
}

Result<std::vector<u8>> compose_header(HeaderParts parts) {
  WireHeader& wire = parts.wire;
  const u64 cluster = u64{1} << wire.cluster_bits;
  std::vector<u8> out;
  append(out, wire);
  out.resize(std::min<u64>(sizeof wire, wire.header_length));
  out.insert(out.end(), parts.beyond.begin(), parts.beyond.end());
  for (const RawExtension& extension : parts.extensions) append_extension(out, extension);
  append_extension(out, {});
  if (out.size() + parts.backing_name.size() > cluster) {
    return make_error(ErrorKind::usage,
                      "the header with the backing file's name needs {} bytes, and its cluster has "
                      "{}",
                      out.size() + parts.backing_name.size(), cluster)
        .with_hint("a shorter name or a larger cluster_size");
  }
  wire.backing_file_offset = parts.backing_name.empty() ? 0 : out.size();
  wire.backing_file_size = static_cast<u32>(parts.backing_name.size());
  out.insert(out.end(), parts.backing_name.begin(), parts.backing_name.end());
  std::memcpy(out.data(), &wire, std::min<u64>(sizeof wire, wire.header_length));
  return out;
}

HeaderParts take_header_apart(const WireHeader& wire, std::span<const u8> first_cluster) {
  HeaderParts parts;
  parts.wire = wire;
  u64 at = wire.header_length;
  if (at > sizeof wire) {
    const auto beyond = first_cluster.subspan(sizeof wire, at - sizeof wire);
    parts.beyond.assign(beyond.begin(), beyond.end());
  }
  const u64 name_at = wire.backing_file_offset;
  const u64 end = name_at != 0 ? name_at : first_cluster.size();
  while (at + sizeof(WireExtension) <= end) {
    WireExtension head;
    std::memcpy(&head, first_cluster.data() + at, sizeof head);
    at += sizeof head;
    if (head.type == kExtensionEnd || head.length > end - at) break;
    const auto data = first_cluster.subspan(at, head.length);
    parts.extensions.push_back({head.type, {data.begin(), data.end()}});
    at += base::align_up(head.length, 8);
  }
  if (name_at != 0) {
    const auto name = first_cluster.subspan(name_at, wire.backing_file_size);
    parts.backing_name.assign(name.begin(), name.end());
  }
  return parts;
}

}  // namespace blockdev::qcow2
