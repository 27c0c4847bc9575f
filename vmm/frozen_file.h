// FrozenFile: a file that a persistent disk was written to until a snapshot froze it.
//
// At T it stops changing in memory; finish() then writes out what it still holds back and closes
// it, so that it never changes again. The user's own file stays where it is and becomes a base
// image of the snapshot; one in the VM's directory becomes a layer of it, under a name of the
// snapshot's.
//
// Invariant: nothing above it may be called durable before finish() has succeeded.
// Thread: all calls from any thread.

#pragma once

#include <memory>
#include <optional>
#include <string>

#include "blockdev/disk_spec.h"
#include "blockdev/writable_image.h"
#include "snapshot/manifest.h"
#include "vmm/base/mutex.h"

namespace vmm {

enum class FileOwner : u8 { user, vm };

// The file that a persistent disk is written to, or was.
struct DiskFile {
  FileOwner owner = FileOwner::user;
  std::string path;
  blockdev::ImageFormat format = blockdev::ImageFormat::qcow2;
};

class FrozenFile final {
 public:
  FrozenFile(DiskFile file, std::shared_ptr<blockdev::WritableImage> image)
      : file_(std::move(file)), image_(std::move(image)) {}

  const DiskFile& file() const { return file_; }
  blockdev::LayerPointer layer() const { return image_; }

  // Flushes and closes it, and lets others read it. Once that has worked it does nothing.
  Result<void> finish();
  // What its header calls the file below it. REQUIRES: finished; the owner is the VM.
  Result<void> set_backing_name(const std::string& name) const;
  // What a manifest says of the user's file. REQUIRES: finished; the owner is the user.
  snapshot::BaseImage base() const;
  bool is_finished() const;

  // The snapshot that has the file, once that is durable.
  std::optional<snapshot::DiskLayer> owned() const;
  void set_owned(snapshot::DiskLayer layer);

 private:
  const DiskFile file_;
  const std::shared_ptr<blockdev::WritableImage> image_;
  base::Mutex finish_mutex_;  // held while the file is written; before mutex_
  mutable base::Mutex mutex_;
  std::optional<snapshot::BaseImage> identity_ GUARDED_BY(mutex_);  // once finished
  std::optional<snapshot::DiskLayer> owned_ GUARDED_BY(mutex_);
};

using FrozenPointer = std::shared_ptr<FrozenFile>;

}  // namespace vmm
