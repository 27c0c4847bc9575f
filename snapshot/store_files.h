// The file-system steps of the store, each with the fsync that makes it last.

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "snapshot/file_lock.h"
#include "snapshot/manifest.h"
#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace snapshot {

inline constexpr char kLockFile[] = "lock";  // of an object

// The lock of the store in the directory `snapshots`. Held for moments: keeps an object from being
// removed between finding it and locking it.
Result<base::Fd> lock_store(const std::string& snapshots, LockMode mode);

// A directory in the store that was being written or removed.
bool is_leftover(std::string_view name);
// Eight digits, for a name that nobody else takes.
std::string random_suffix();

// What stands in a directory, sorted, without those that begin with '.' followed by nothing or '.'.
// A missing directory is empty.
Result<std::vector<std::string>> names_in(const std::string& path);

// The manifest of the object in the directory `path`.
Result<Manifest> read_manifest_at(const std::string& path, const Uuid& uuid);

// Makes every file in a flat directory read-only and durable; the lock file stays writable.
Result<void> seal_files(const std::string& path, const base::Fd& directory);

// Renames; refuses when `to` exists.
Result<void> rename_new(const std::string& from, const std::string& to);

// A small file that appears whole and durable, or not at all; refuses when it exists.
Result<void> write_new_file(const std::string& directory, const std::string& name,
                            std::string_view text);
// As above in the place of what has the name, if anything has.
Result<void> replace_file(const std::string& directory, const std::string& name,
                          std::string_view text);
// Removes it and makes that last. A missing file is no error.
Result<void> remove_file(const std::string& directory, const std::string& name);

// Removes a flat directory as far as it can: what is left is for gc().
void remove_directory(const std::string& path);

// Reads the whole layer, or all its tables where the manifest has no checksum of it.
Result<void> check_disk_layer(const base::Fd& file, const DiskLayer& layer);

}  // namespace snapshot
