// What qemu-img says of our headers, and we of qemu-img's. A constant that is wrong in our reader
// and in our writer alike is found by foreign bytes only.

#pragma once

#include <string>
#include <vector>

namespace blockdev::test {

// Whether both find the backing file and its format in the other's overlay: what one does not.
// Uses files of its own in `directory`.
std::vector<std::string> exchange_backing_formats(const std::string& directory);

}  // namespace blockdev::test
