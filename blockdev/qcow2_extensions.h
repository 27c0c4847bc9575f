// The variable part of a qcow2 header: extensions and the backing file's name.

#pragma once

#include <span>
#include <string>
#include <string_view>
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

// Refuses a name of a backing file that parse_backing_name() would refuse.
Result<void> check_backing_name(std::string_view name);

// Empty: none. The name must lie behind the header, in the first cluster, and be plain text.
Result<std::string> parse_backing_name(const WireHeader& header, std::span<const u8> first_cluster);

}  // namespace blockdev::qcow2
