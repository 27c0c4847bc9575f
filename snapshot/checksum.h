// Checksum: XXH3-128, written "xxh3-128:" and 32 hexadecimal digits of its canonical (big-endian)
// form. It finds torn writes and rotten bits; it does not stop somebody who wants to deceive.

#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace snapshot {

struct Checksum {
  std::array<u8, 16> bytes{};

  static Checksum of(std::span<const u8> bytes);
  static Checksum of(std::string_view text);
  static Result<Checksum> parse(std::string_view text);
  std::string to_string() const;

  friend bool operator==(const Checksum&, const Checksum&) = default;
};

// XXH3-64 of a whole file, holes as zeros; reads all of it.
Result<u64> checksum64_of_file(const base::Fd& file);

}  // namespace snapshot
