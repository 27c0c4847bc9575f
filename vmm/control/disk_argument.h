// DiskArgument: one --disk argument taken apart.
//
//   FILE,format=qcow2|raw[,mode=overlay|ro|persist][,backing=FILE:FORMAT]...[,backing-dir=DIR]
//
// A comma that belongs to a file name is doubled, as in QEMU. `backing` names the chain from top to
// bottom; it may be repeated. Formats are never guessed: format= has to be there.

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace control {

enum class DiskFormat : u8 { raw, qcow2 };
enum class DiskMode : u8 {
  overlay,  // the file is only read; writes go to a throw-away layer
  ro,       // the guest sees a read-only disk
  persist,  // writes go to the file
};

struct DiskArgument {
  struct Backing {
    std::string file;
    DiskFormat format = DiskFormat::raw;
    friend bool operator==(const Backing&, const Backing&) = default;
  };

  std::string file;
  DiskFormat format = DiskFormat::raw;
  DiskMode mode = DiskMode::overlay;
  std::vector<Backing> backing;
  std::string backing_dir;  // empty: names inside images are never followed

  // The argument that parses to this.
  std::string text() const;
  // All file names made absolute against `directory`.
  void make_absolute(const std::string& directory);

  friend bool operator==(const DiskArgument&, const DiskArgument&) = default;
};

std::string_view name_of(DiskFormat format);
std::string_view name_of(DiskMode mode);

Result<DiskArgument> parse_disk_argument(std::string_view text);

// `path` itself if absolute, else below `directory`.
std::string absolute_path(const std::string& directory, const std::string& path);

}  // namespace control
