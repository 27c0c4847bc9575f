// Integers as they lie in a file, in guest memory or in a hardware table.
//
// A structure that leaves the process is declared from these and nothing else. They are byte arrays
// with conversions: alignment 1, so no padding can appear between fields; the byte order is part of
// the type, so a value cannot be used before it was put in the right order; and the compiler turns
// each conversion into one plain load or store (plus a bswap).

#pragma once

#include <bit>
#include <cstring>
#include <type_traits>

#include "vmm/base/types.h"

namespace base {

template <class T, std::endian kOrder>
class WireInteger final {
 public:
  constexpr WireInteger() = default;
  constexpr WireInteger(T value) { store(value); }
  constexpr operator T() const { return load(); }
  constexpr WireInteger& operator=(T value) {
    store(value);
    return *this;
  }

 private:
  static constexpr unsigned shift(std::size_t index) {
    const std::size_t rank = kOrder == std::endian::little ? index : sizeof(T) - 1 - index;
    return static_cast<unsigned>(rank * 8);
  }
  constexpr T load() const {
    T value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      value = static_cast<T>(value | static_cast<T>(static_cast<T>(bytes_[i]) << shift(i)));
    }
    return value;
  }
  constexpr void store(T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) bytes_[i] = static_cast<u8>(value >> shift(i));
  }

  u8 bytes_[sizeof(T)] = {};
};

// What may be copied byte for byte to and from outside: no padding whose content would leak, no
// alignment that the other side does not know of, no pointers hidden in a constructor.
template <class T>
concept WireType = std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T> &&
                   alignof(T) == 1;

}  // namespace base

using le16 = base::WireInteger<u16, std::endian::little>;
using le32 = base::WireInteger<u32, std::endian::little>;
using le64 = base::WireInteger<u64, std::endian::little>;
using be16 = base::WireInteger<u16, std::endian::big>;
using be32 = base::WireInteger<u32, std::endian::big>;
using be64 = base::WireInteger<u64, std::endian::big>;

static_assert(base::WireType<le64> && sizeof(le64) == 8 && base::WireType<be16>);
