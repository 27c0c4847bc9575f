#include "blockdev/qcow2_extensions.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "vmm/base/planted_fault.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

// The next character of UTF-8 text (RFC 3629, section 4), taken off its front; nothing where the
// bytes are none.
std::optional<u32> take_character(std::string_view& text) {
  const u8 lead = static_cast<u8>(text.front());
  const u32 tail = lead < 0x80                   ? 0
                   : lead >= 0xc2 && lead < 0xe0 ? 1
                   : lead >= 0xe0 && lead < 0xf0 ? 2
                   : lead >= 0xf0 && lead < 0xf5 ? 3
                                                 : 4;
  if (tail == 4 || text.size() <= tail) return std::nullopt;
  u32 character = tail == 0 ? lead : lead & (0x3fu >> tail);
  for (u32 i = 1; i <= tail; ++i) {
    const u8 byte = static_cast<u8>(text[i]);
    if ((byte & 0xc0) != 0x80) return std::nullopt;
    character = character << 6 | (byte & 0x3fu);
  }
  constexpr u32 kSmallest[] = {0, 0x80, 0x800, 0x10000};
  const bool is_surrogate = character >= 0xd800 && character < 0xe000;
  if (character < kSmallest[tail] || character > 0x10ffff || is_surrogate) return std::nullopt;
  text.remove_prefix(tail + 1);
  return character;
}

// Names are quoted in messages and compared with what the user says, so nothing may stand in them
// that moves a terminal's cursor or makes a line look like another: C0 and C1 control characters,
// line and paragraph separators, and what changes the direction of text (Unicode, UAX 9, 2).
bool is_plain(u32 character) {
  constexpr struct {
    u32 first;
    u32 last;
  } kRefused[] = {{0, 0x1f},        {0x7f, 0x9f},     {0x61c, 0x61c},
                  {0x200e, 0x200f}, {0x2028, 0x202e}, {0x2066, 0x2069}};
  return std::ranges::none_of(kRefused, [=](const auto& range) {
    return character >= range.first && character <= range.last;
  });
}

bool is_plain_text(std::string_view text) {
  while (!text.empty()) {
    const std::optional<u32> character = take_character(text);
    if (!character || !is_plain(*character)) return false;
  }
  return true;
}

std::string text_of(std::span<const u8> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Result<void> take_extension(u32 type, std::span<const u8> data, Extensions& out) {
  // A writer and a reader that agree on it find nothing: only foreign bytes do.
  if (base::planted("wrong-magic")) type ^= 0xe279268f ^ kExtensionBackingFormat;
  switch (type) {
    case kExtensionBackingFormat:
      out.backing_format = text_of(data);
      if (data.size() > 15 || !is_plain_text(out.backing_format)) {
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

Result<void> check_backing_name(std::string_view name) {
  if (name.size() > kMaxBackingNameBytes) {
    return make_error(ErrorKind::usage, "the backing file's name has {} bytes (at most {})",
                      name.size(), kMaxBackingNameBytes);
  }
  if (!is_plain_text(name)) {
    return make_error(ErrorKind::usage,
                      "the backing file's name is not plain text: it is not UTF-8, or has control "
                      "characters");
  }
  return {};
}

Result<std::string> parse_backing_name(const WireHeader& header,
                                       std::span<const u8> first_cluster) {
  const u64 offset = header.backing_file_offset;
  const u32 size = header.backing_file_size;
  if (offset == 0 && size == 0) return std::string();
  if (offset == 0 || size == 0) {
    return make_error(ErrorKind::corrupt, "backing file name at {:#x} with {} bytes", offset, size);
  }
  if (offset < header.header_length || !base::contains(first_cluster.size(), offset, size)) {
    return make_error(ErrorKind::corrupt,
                      "backing file name at {:#x} is not between the header and the end of the "
                      "first cluster",
                      offset);
  }
  std::string name = text_of(first_cluster.subspan(offset, size));
  if (const Result<void> checked = check_backing_name(name); !checked) {
    return make_error(ErrorKind::corrupt, "{}", checked.error().message());
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
      if (is_plain_text(name)) text += fmt::format(" ({})", name);
      break;
    }
  }
  return text;
}

}  // namespace blockdev::qcow2
