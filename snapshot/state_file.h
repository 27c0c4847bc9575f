// The state file: one section for each Stateful of the machine. FORMAT.md draws it.
//
// Every byte is covered by a checksum; truncation anywhere and any flipped bit are refused. Nothing
// is allocated before the size is known to be at most kMaximumStateBytes.

#pragma once

#include <span>
#include <string>
#include <vector>

#include "snapshot/manifest.h"
#include "vmm/base/codec.h"
#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace snapshot {

inline constexpr u64 kMaximumStateBytes = 64 * base::kMiB;
inline constexpr u32 kMaximumSections = 4096;

struct Section {
  std::string name;  // Stateful::state_name(), unique in the file
  base::Bytes payload;
  friend bool operator==(const Section&, const Section&) = default;
};

// REQUIRES: names are unique and 1 to 64 bytes long.
Result<base::Bytes> encode_sections(std::span<const Section> sections);
Result<std::vector<Section>> decode_sections(std::span<const u8> bytes);

// Creates `name` in `directory` and makes it durable; the result is what the manifest says of it.
Result<StateFile> write_state_file(const base::Fd& directory, const std::string& name,
                                   std::span<const Section> sections);
// Checks size and checksum against `expected`.
Result<std::vector<Section>> read_state_file(const base::Fd& file, const StateFile& expected);

}  // namespace snapshot
