#include "snapshot/uuid.h"

#include <sys/random.h>

#include "vmm/base/check.h"

namespace snapshot {
namespace {

constexpr bool dash_before(std::size_t byte_index) {
  return byte_index == 4 || byte_index == 6 || byte_index == 8 || byte_index == 10;
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

Uuid Uuid::random() {
  Uuid uuid;
  // Up to 256 bytes are never interrupted or short once the kernel's pool is ready (getrandom(2)).
  CHECK(::getrandom(uuid.bytes.data(), uuid.bytes.size(), 0) ==
        static_cast<ssize_t>(uuid.bytes.size()));
  uuid.bytes[6] = static_cast<u8>((uuid.bytes[6] & 0x0f) | 0x40);  // RFC 9562 4.2: version 4
  uuid.bytes[8] = static_cast<u8>((uuid.bytes[8] & 0x3f) | 0x80);  // RFC 9562 4.1: variant 10
  return uuid;
}

Result<Uuid> Uuid::parse(std::string_view text) {
  const auto refuse = [&] {
    return make_error(ErrorKind::corrupt, "\"{}\" is not a UUID", text.substr(0, 64));
  };
  if (text.size() != 36) return refuse();
  Uuid uuid;
  std::size_t at = 0;
  for (std::size_t i = 0; i < uuid.bytes.size(); ++i) {
    if (dash_before(i) && text[at++] != '-') return refuse();
    const int high = hex_value(text[at++]);
    const int low = hex_value(text[at++]);
    if (high < 0 || low < 0) return refuse();
    uuid.bytes[i] = static_cast<u8>(high << 4 | low);
  }
  return uuid;
}

std::string Uuid::to_string() const {
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (dash_before(i)) text += '-';
    text += fmt::format("{:02x}", bytes[i]);
  }
  return text;
}

}  // namespace snapshot
