#include "vmm/control/size_text.h"

#include <charconv>

#include "vmm/base/ranges.h"

namespace control {
namespace {

u64 unit_of(char letter) {
  switch (letter) {
    case 'k':
    case 'K': return base::kKiB;
    case 'm':
    case 'M': return base::kMiB;
    case 'g':
    case 'G': return base::kGiB;
    case 't':
    case 'T': return base::kGiB * 1024;
    default: return 0;
  }
}

Error bad_size(std::string_view what, std::string_view text) {
  return make_error(ErrorKind::usage, "{}: \"{}\" is not a size", what, text)
      .with_hint("a size is a whole number and one of k, M, G, T: 512M, 2G");
}

}  // namespace

Result<u64> parse_size(std::string_view what, std::string_view text, u64 bare_unit) {
  u64 number = 0;
  const char* end = text.data() + text.size();
  const auto [after, code] = std::from_chars(text.data(), end, number);
  if (code != std::errc() || end - after > 1) return bad_size(what, text);
  const u64 unit = after == end ? bare_unit : unit_of(*after);
  if (unit == 0) return bad_size(what, text);
  const std::optional<u64> bytes = base::checked_multiply(number, unit);
  if (!bytes) return bad_size(what, text);
  return *bytes;
}

std::string format_size(u64 bytes) {
  constexpr std::string_view kLetters = "TGMk";
  u64 unit = base::kGiB * 1024;
  for (const char letter : kLetters) {
    if (bytes != 0 && bytes % unit == 0) return fmt::format("{}{}", bytes / unit, letter);
    unit /= 1024;
  }
  return fmt::format("{}", bytes);
}

std::string human_size(u64 bytes) {
  constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
  if (bytes < base::kKiB) return fmt::format("{} B", bytes);
  u64 unit = base::kKiB;
  std::size_t index = 0;
  while (index + 1 < std::size(kUnits) && bytes / unit >= base::kKiB) {
    unit *= base::kKiB;
    ++index;
  }
  const u64 tenths = bytes / (unit / 32) * 10 / 32;  // integers: no locale, no rounding up a unit
  if (tenths >= 1000) return fmt::format("{} {}", tenths / 10, kUnits[index]);
  return fmt::format("{}.{} {}", tenths / 10, tenths % 10, kUnits[index]);
}

}  // namespace control
