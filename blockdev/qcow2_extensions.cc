#include "blockdev/qcow2_extensions.h"

#include <algorithm>
#include <cstring>

#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

// Names are quoted in messages and compared with what the user says: no control characters.
bool is_plain_text(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) {
    const u8 byte = static_cast<u8>(c);
    return byte < 0x20 || byte == 0x7f;
  });
}

// UTF-8 as RFC 3629, section 4, without the finer points of surrogates and overlong forms: what
// passes is safe to print.
bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const u8 lead = static_cast<u8>(text[i++]);
    const int tail = lead < 0x80                   ? 0
                     : lead >= 0xc2 && lead < 0xe0 ? 1
                     : lead >= 0xe0 && lead < 0xf0 ? 2
                     : lead >= 0xf0 && lead < 0xf5 ? 3
                                                   : -1;
    if (tail < 0) return false;
    for (int k = 0; k < tail; ++k) {
      if (i == text.size() || (static_cast<u8>(text[i++]) & 0xc0) != 0x80) return false;
    }
  }
  return true;
}

std::string text_of(std::span<const u8> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Result<void> take_extension(u32 type, std::span<const u8> data, Extensions& out) {
  switch (type) {
    case kExtensionBackingFormat:
      out.backing_format = text_of(data);
      if (data.size() > 15 || !is_plain_text(out.backing_format) || !is_utf8(out.backing_format)) {
        return make_error(ErrorKind::corrupt, "the backing file's format is not a name");
      }
      return {};
    case kExtensionFeatureNames:
      for (; data.size() >= sizeof(WireFeatureName); data = data.subspan(sizeof(WireFeatureName))) {
        WireFeatureName& name = out.feature_names.emplace_back();
        std::memcpy(&name, data.data(), sizeof name);
      }
      return {};
    case kExtensionBitmaps: out.has_bitmaps = true; return {};
    case kExtensionEncryption: out.has_encryption = true; return {};
    case kExtensionDataFile: out.has_data_file = true; return {};
    default: return {};  // unknown extensions say nothing that a reader must know
  }
}

}  // namespace

Result<Extensions> parse_extensions(const WireHeader& header, std::span<const u8> first_cluster) {
  Extensions extensions;
  const u64 end = header.backing_file_offset != 0
                      ? std::min<u64>(header.backing_file_offset, first_cluster.size())
                      : first_cluster.size();
  u64 at = header.header_length;
  while (at < end && end - at >= sizeof(WireExtension)) {
    WireExtension extension;
    std::memcpy(&extension, first_cluster.data() + at, sizeof extension);
    at += sizeof extension;
    if (extension.type == kExtensionEnd) break;
    if (extension.length > end - at) {
      return make_error(ErrorKind::corrupt,
                        "header extension {:#010x} of {} bytes, only {} are left",
                        u32{extension.type}, u32{extension.length}, end - at);
    }
    TRY(take_extension(extension.type, first_cluster.subspan(at, extension.length), extensions));
    at += base::align_up(extension.length, 8);
  }
  return extensions;
}

Result<std::string> parse_backing_name(const WireHeader& header,
                                       std::span<const u8> first_cluster) {
  const u64 offset = header.backing_file_offset;
  const u32 size = header.backing_file_size;
  if (offset == 0 && size == 0) return std::string();
  if (offset == 0 || size == 0) {
    return make_error(ErrorKind::corrupt, "backing file name at {:#x} with {} bytes", offset, size);
  }
  if (size > kMaxBackingNameBytes) {
    return make_error(ErrorKind::corrupt, "backing file name of {} bytes (at most {})", size,
                      kMaxBackingNameBytes);
  }
  if (offset < header.header_length || !base::contains(first_cluster.size(), offset, size)) {
    return make_error(ErrorKind::corrupt,
                      "backing file name at {:#x} is not between the header and the end of the "
                      "first cluster",
                      offset);
  }
  std::string name = text_of(first_cluster.subspan(offset, size));
  if (!is_plain_text(name) || !is_utf8(name)) {
    return make_error(ErrorKind::corrupt, "backing file name is not plain text");
  }
  return name;
}

std::string Extensions::describe_incompatible(u64 bits) const {
  std::string text;
  for (u32 bit = 0; bit < 64; ++bit) {
    if ((bits >> bit & 1) == 0) continue;
    if (!text.empty()) text += ", ";
    text += fmt::format("bit {}", bit);
    for (const WireFeatureName& entry : feature_names) {
      if (entry.type != 0 || entry.bit != bit) continue;
      const std::string name(entry.name, strnlen(entry.name, sizeof entry.name));
      if (is_plain_text(name) && is_utf8(name)) text += fmt::format(" ({})", name);
      break;
    }
  }
  return text;
}

}  // namespace blockdev::qcow2
