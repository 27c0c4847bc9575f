// Gpa: a guest-physical address. It has no operators and converts to nothing, so that it cannot be
// dereferenced, added to without a check, or mistaken for a RAM offset.

#pragma once

#include <compare>
#include <optional>

#include "vmm/base/ranges.h"
#include "vmm/base/types.h"

struct Gpa {
  u64 value = 0;

  constexpr std::optional<Gpa> checked_add(u64 bytes) const {
    const std::optional<u64> sum = base::checked_add(value, bytes);
    if (!sum) return std::nullopt;
    return Gpa{*sum};
  }
  friend constexpr auto operator<=>(Gpa, Gpa) = default;
};
