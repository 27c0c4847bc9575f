// SpillFile: a file without a name, for what does not fit in memory. It is gone when it is closed,
// also by a crash.

#pragma once

#include <string>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace blockdev {

Result<base::Fd> open_spill_file(const std::string& directory);

// What the above does on file systems without O_TMPFILE: makes a file with a name and takes the
// name away.
Result<base::Fd> open_unlinked_file(const std::string& directory);

}  // namespace blockdev
