// The memory file: RAM front to back, page for page at its RAM offset, zero pages as holes, exactly
// as long as RAM. It can be mapped. Beside it a file of checksums, one for every 2 MiB chunk.
//
// Writing takes as long as the disk does: never inside a pause.

#pragma once

#include <string>
#include <vector>

#include "snapshot/manifest.h"
#include "snapshot/memory_image.h"
#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/memory/guest_memory.h"

namespace snapshot {

inline constexpr u64 kChunkBytes = 2 * base::kMiB;

// Creates kMemoryFile and kMemorySumsFile in `directory` and makes both durable (mode 0400). If it
// fails, neither exists; no room is ErrorKind::no_space.
Result<MemoryLayer> write_memory_file(const base::Fd& directory, const MemoryImage& image);

// Opens what the manifest names, after checking size and kind; O_RDONLY.
Result<base::Fd> open_memory_file(const base::Fd& directory, const MemoryLayer& layer);

// Which parts of the memory file are not zeros, by its checksums: whole chunks, ascending, none
// that touch each other. Does not read the file.
Result<std::vector<memory::FilePart>> data_parts(const base::Fd& directory,
                                                 const MemoryLayer& layer);

// Reads everything. An Error of kind corrupt names the first chunk that differs.
Result<void> verify_memory_file(const base::Fd& directory, const MemoryLayer& layer);

}  // namespace snapshot
