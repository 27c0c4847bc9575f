// The file-system steps of the store, each with the fsync that makes it last.

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "snapshot/manifest.h"
#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace snapshot {

// Creates the directory and those above it that are missing, 0700.
Result<void> make_directories(const std::string& path);

// What stands in a directory, sorted, without those that begin with '.' followed by nothing or '.'.
// A missing directory is empty.
Result<std::vector<std::string>> names_in(const std::string& path);

// Makes every file in a flat directory read-only and durable; the lock file stays writable.
Result<void> seal_files(const std::string& path, const base::Fd& directory);

// Renames; refuses when `to` exists.
Result<void> rename_new(const std::string& from, const std::string& to);

// A small file that appears whole and durable, or not at all; refuses when it exists.
Result<void> write_new_file(const std::string& directory, const std::string& name,
                            std::string_view text);
// Removes it and makes that last. A missing file is no error.
Result<void> remove_file(const std::string& directory, const std::string& name);

// Removes a flat directory as far as it can: what is left is for gc().
void remove_directory(const std::string& path);

// Reads the whole layer.
Result<void> check_disk_layer(const base::Fd& file, const DiskLayer& layer);

}  // namespace snapshot
