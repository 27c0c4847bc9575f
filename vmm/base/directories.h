// Directories that stay: what is made in one that a power cut forgets is lost with it.

#pragma once

#include <string>

#include "vmm/base/result.h"

namespace base {

// mkdir -p: each new directory is 0700 and durable.
Result<void> make_directories(const std::string& path);

}  // namespace base
