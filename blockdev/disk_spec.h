// DiskSpec: what the user says of one disk on the command line.
//
//   FILE,format=qcow2|raw[,mode=overlay|persist|ro][,backing=FILE:FORMAT]...[,backing-dir=DIR]
//
// A comma inside a name is doubled. The format is mandatory: formats are never probed, because a
// guest that writes a qcow2 header into its raw disk would choose what the host opens next
// (reference: CVE-2010-2237 and its many returns).

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace blockdev {

enum class ImageFormat : u8 { raw, qcow2 };

enum class DiskMode : u8 {
  overlay,  // writes go to a throw-away layer, the image is never changed
  persist,  // writes go through to the image, until a snapshot freezes it
  ro,       // writes are refused
};

struct BackingSpec {
  std::string path;
  ImageFormat format = ImageFormat::raw;
  bool operator==(const BackingSpec&) const = default;
};

struct DiskSpec {
  std::string path;
  ImageFormat format = ImageFormat::raw;
  DiskMode mode = DiskMode::overlay;
  std::vector<BackingSpec> backing;  // from top to bottom, below `path`
  std::string backing_dir;           // empty: names inside images are not followed
  bool operator==(const DiskSpec&) const = default;
};

Result<DiskSpec> parse_disk_spec(std::string_view text);
// The inverse: parse_disk_spec(format_disk_spec(s)) == s.
std::string format_disk_spec(const DiskSpec& spec);
// A name as it stands in the text of a DiskSpec.
std::string doubled_commas(std::string_view text);
// The parts between single commas, with doubled commas made one.
std::vector<std::string> split_at_commas(std::string_view text);

Result<ImageFormat> parse_image_format(std::string_view name);
std::string_view image_format_name(ImageFormat format);
std::string_view disk_mode_name(DiskMode mode);

}  // namespace blockdev
