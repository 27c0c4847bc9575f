// The variable part of a qcow2 header: extensions and the backing file's name.

#pragma once

#include <span>
#include <string>
#include <vector>

#include "blockdev/qcow2_format.h"
#include "vmm/base/result.h"

namespace blockdev::qcow2 {

struct Extensions {
  std::string backing_format;
  bool has_bitmaps = false;
  bool has_encryption = false;
  bool has_data_file = false;
  std::vector<WireFeatureName> feature_names;

  // "bit 17 (shiny), bit 40": the image's own table names what we do not know.
  std::string describe_incompatible(u64 bits) const;
};

// `first_cluster` is padded with zeros where the file ends early.
Result<Extensions> parse_extensions(const WireHeader& header, std::span<const u8> first_cluster);

// Whether the name may stand in an image: not too long, and plain text. Who writes one asks first.
Result<void> check_backing_name(const std::string& name);

// Empty: none. The name must lie behind the header, in the first cluster, and pass the check above.
Result<std::string> parse_backing_name(const WireHeader& header, std::span<const u8> first_cluster);

}  // namespace blockdev::qcow2
