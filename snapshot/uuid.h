// Uuid: the name of a snapshot object, 128 random bits (RFC 9562 section 5.4, version 4).

#pragma once

#include <array>
#include <compare>
#include <string>
#include <string_view>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace snapshot {

struct Uuid {
  std::array<u8, 16> bytes{};

  static Uuid random();  // getrandom(2)
  // Only the canonical form: 36 characters, lower case.
  static Result<Uuid> parse(std::string_view text);
  std::string to_string() const;

  friend auto operator<=>(const Uuid&, const Uuid&) = default;
};

}  // namespace snapshot
