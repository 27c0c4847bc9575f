// PersistentDisk: one mode=persist disk while its VM runs: the file that is written, and what lies
// below it.
//
//   the user's file --first snapshot--> VMS/NAME/disk-N-1.qcow2 --next--> disk-N-2.qcow2 ...
//
// Until the first snapshot the disk writes through to the user's file. A snapshot freezes what is
// written and goes on in a fresh file above it; a revert goes on in a fresh file above the
// snapshot's and leaves the one it was in. Fresh files are made before the pause: inside it nothing
// is opened, written or synced.
//
// Thread: the control thread.

#pragma once

#include <memory>
#include <string>

#include "blockdev/durable_disk.h"
#include "blockdev/flush_gate.h"
#include "blockdev/layer_writer.h"
#include "vmm/frozen_file.h"
#include "vmm/snapshot_mark.h"

namespace vmm {

// An open file that is written. A fresh one is to be next: empty, not durable.
struct WrittenFile {
  DiskFile file;
  std::shared_ptr<blockdev::WritableImage> image;
};

class PersistentDisk final {
 public:
  struct Parts {
    u32 slot = 0;
    blockdev::DurableDisk* disk = nullptr;  // both outlive this object
    blockdev::FlushGate* gate = nullptr;
    DiskFile file;   // that `disk` writes
    DiskMark below;  // what lies below it
    u64 files_made = 0;
  };
  PersistentDisk(std::string vm_directory, Parts parts)
      : vm_directory_(std::move(vm_directory)), parts_(std::move(parts)) {}

  u32 slot() const { return parts_.slot; }
  std::string name() const { return fmt::format("vd{}", static_cast<char>('a' + parts_.slot)); }
  blockdev::DurableDisk& disk() const { return *parts_.disk; }
  blockdev::FlushGate& gate() const { return *parts_.gate; }
  const DiskFile& file() const { return parts_.file; }
  const DiskMark& below() const { return parts_.below; }

  // How a file above it names the one written now, once the snapshot `owner` has frozen it.
  blockdev::BackingName backing_name(const snapshot::Uuid& owner) const;
  Result<WrittenFile> make_fresh(const blockdev::BackingName& backing);

  // Both REQUIRE: drained. What was written is frozen: the uppermost layer of below() from now on.
  void split(WrittenFile fresh);
  // The disk is as `target` says from now on. Returns what was written until then.
  WrittenFile rebase_on(WrittenFile fresh, const DiskMark& target);

 private:
  const std::string vm_directory_;
  Parts parts_;
};

// The name of a file for `slot`, which no other has in this VM's life.
std::string head_file_name(u32 slot, u64 number);
// How a file in a VM's directory, or in a snapshot's, names a layer that a snapshot has.
blockdev::BackingName layer_backing_name(const snapshot::Uuid& owner, const std::string& file);
// The same for what is uppermost in `mark`, which belongs to the snapshot `node`.
blockdev::BackingName top_backing_name(const DiskMark& mark, const snapshot::Uuid& node, u32 slot);
// An empty file of `size_bytes` above `backing`, opened for writing.
Result<blockdev::ImageFile> create_head_file(const std::string& path, u64 size_bytes,
                                             const blockdev::BackingName& backing);

}  // namespace vmm
