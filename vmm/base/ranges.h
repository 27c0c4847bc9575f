// Checked arithmetic on sizes and offsets. No range check is written by hand anywhere else.

#pragma once

#include <optional>

#include "vmm/base/types.h"

namespace base {

constexpr std::optional<u64> checked_add(u64 a, u64 b) {
  u64 sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

constexpr std::optional<u64> checked_multiply(u64 a, u64 b) {
  u64 product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// Whether [offset, offset + length) lies within [0, size). Never wraps.
constexpr bool contains(u64 size, u64 offset, u64 length) {
  return offset <= size && length <= size - offset;
}

constexpr bool overlaps(u64 a, u64 a_length, u64 b, u64 b_length) {
  return a_length != 0 && b_length != 0 && (a < b ? b - a < a_length : a - b < b_length);
}

constexpr bool is_power_of_two(u64 value) { return value != 0 && (value & (value - 1)) == 0; }

// REQUIRES for the three below: `alignment` is a power of two; align_up does not wrap.
constexpr bool is_aligned(u64 value, u64 alignment) { return (value & (alignment - 1)) == 0; }
constexpr u64 align_down(u64 value, u64 alignment) { return value & ~(alignment - 1); }
constexpr u64 align_up(u64 value, u64 alignment) {
  return align_down(value + alignment - 1, alignment);
}

constexpr u64 divide_up(u64 value, u64 divisor) {
  return value / divisor + (value % divisor != 0 ? 1 : 0);
}

}  // namespace base
