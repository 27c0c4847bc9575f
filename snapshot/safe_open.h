// Opening what stands in a snapshot's directory, which may have come from anywhere.

#pragma once

#include <string>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace snapshot {

// What else may name a file: nothing, or one other directory, for what changes hands between two.
enum class HardLinks : u8 { none, one_other };

// Opens the regular file `name` in `directory`, O_RDONLY. Refuses links of both kinds, pipes and
// devices, files of other users and files that others may write.
Result<base::Fd> open_plain_file(const base::Fd& directory, const std::string& name,
                                 HardLinks allowed = HardLinks::none);
// As above, and refuses a file that is not exactly `size_bytes` long.
Result<base::Fd> open_sized_file(const base::Fd& directory, const std::string& name, u64 size_bytes,
                                 HardLinks allowed = HardLinks::none);
// Opens a snapshot's directory; refuses a link, another user's, and one that others may write.
Result<base::Fd> open_private_directory(const std::string& path);

}  // namespace snapshot
