// Export: one disk as nbdkit's threads use it. Each call takes a queue of its own from a pool,
// waits for its request and puts the queue back; there are as many queues as there ever were calls
// at once.
//
// Invariant: a queue in the pool has nothing in flight.
// Thread: all calls from any thread.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "blockdev/disk.h"
#include "vmm/base/mutex.h"
#include "vmm/base/result.h"

namespace blockdev::nbd {

struct ExportOptions {
  std::string disk;                 // a DiskSpec as text
  std::vector<std::string> layers;  // layer files of snapshots above it, from bottom to top
};

class Export final {
 public:
  static Result<std::unique_ptr<Export>> open(const ExportOptions& options);

  const BlockBackend& disk() const { return *disk_->backend; }

  BlockStatus read(u64 offset, u64 length, void* to);
  BlockStatus write(u64 offset, u64 length, const void* from);
  BlockStatus discard(u64 offset, u64 length);
  BlockStatus write_zeroes(u64 offset, u64 length, Unmap unmap);
  BlockStatus flush();

 private:
  explicit Export(std::unique_ptr<Disk> disk) : disk_(std::move(disk)) {}

  BlockStatus run(BlockRequest request);
  std::unique_ptr<BlockQueue> take_queue();
  void put_back(std::unique_ptr<BlockQueue> queue);

  // Before the queues, which must go first.
  std::unique_ptr<Disk> disk_;
  base::Mutex mutex_;
  std::vector<std::unique_ptr<BlockQueue>> idle_;  // guarded by mutex_
};

}  // namespace blockdev::nbd
