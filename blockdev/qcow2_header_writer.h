// The start of a qcow2 image as bytes: header, extensions, the backing file's name. Reading them is
// qcow2_header.h and qcow2_extensions.h.

#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blockdev/qcow2_format.h"
#include "vmm/base/result.h"

namespace blockdev::qcow2 {

// One extension as it stands in the file, without its padding.
struct RawExtension {
  u32 type = kExtensionEnd;
  std::vector<u8> data;
  bool operator==(const RawExtension&) const = default;
};

RawExtension backing_format_extension(std::string_view format);
// The names of all features known here, for readers that do not know them.
RawExtension feature_names_extension();

// Everything that the header's cluster starts with.
struct HeaderParts {
  WireHeader wire;         // where the backing file's name lies is filled in by compose_header()
  std::vector<u8> beyond;  // header_length says that there is more than WireHeader: kept as it is
  std::vector<RawExtension> extensions;
  std::string backing_name;  // empty: none
};

// An Error: it does not fit into one cluster.
Result<std::vector<u8>> compose_header(HeaderParts parts);

// The inverse, for headers that read_header() accepts.
// REQUIRES: `first_cluster` is a whole cluster.
HeaderParts take_header_apart(const WireHeader& wire, std::span<const u8> first_cluster);

}  // namespace blockdev::qcow2
