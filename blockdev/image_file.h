// ImageFile: an image file opened for reading or for writing, locked against who must not have it
// meanwhile, with its identity.

#pragma once

#include <string>

#include "blockdev/disk_spec.h"
#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace blockdev {

// What a manifest records of an image, so that a restore can tell that it is still the same.
struct ImageIdentity {
  std::string path;  // absolute, symbolic links resolved
  ImageFormat format = ImageFormat::raw;
  u64 device = 0;
  u64 inode = 0;
  u64 size_bytes = 0;  // of the file, not of the disk in it
  i64 mtime_ns = 0;    // 0 for a device
  bool operator==(const ImageIdentity&) const = default;
  bool is_same_file(const ImageIdentity& other) const {
    return device == other.device && inode == other.inode;
  }
};

struct ImageFile {
  base::Fd fd;
  ImageIdentity identity;
};

// Whether writers are kept away meanwhile. `none`: what is read may change under its reader.
enum class ImageLocking : u8 { shared, none };

// Opens a regular file or a block device read-only and takes the reader's lock of image_lock.h.
// Symbolic links are followed: the user named the file.
Result<ImageFile> open_image_file(const std::string& path, ImageFormat format,
                                  ImageLocking locking = ImageLocking::shared);
// As above for reading and writing, with the writer's lock. The identity is that of now: it changes
// with every write.
Result<ImageFile> open_image_file_for_writing(const std::string& path, ImageFormat format);
// What the file is now. REQUIRES: `fd` is of a file that this folder opened.
Result<ImageIdentity> identify_image(const base::Fd& fd, const std::string& path,
                                     ImageFormat format);

// As above for a name found inside an image: below `directory` only, no symbolic links, regular
// files only (openat2 with RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS).
Result<ImageFile> open_image_file_beneath(const std::string& directory, const std::string& name,
                                          ImageFormat format,
                                          ImageLocking locking = ImageLocking::shared);

}  // namespace blockdev
