// DirectEngine: another engine, with data sent past the page cache.
//
// Each file is opened once more, with O_DIRECT. What is whole pages, in memory and in the file, goes
// there; all else goes to the file as the caller has it: tables of metadata, parts of pages, syncs.
// The kernel keeps the two in step by the page.
//
// Invariant: the number of a descriptor stands for one file as long as the engine lives.
// Thread: as IoEngine.

#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "blockdev/io_engine.h"
#include "vmm/base/fd.h"

namespace blockdev {

inline constexpr u64 kDirectIoBytes = 4096;

// Whether the file system has direct I/O for the file (statx(2), STATX_DIOALIGN), by the page.
Result<void> check_direct_io(const std::string& path);

class DirectEngine final : public IoEngine {
 public:
  explicit DirectEngine(std::unique_ptr<IoEngine> below) : below_(std::move(below)) {}

  std::optional<int> try_now(const IoOperation& operation) override;
  void submit(const IoOperation& operation) override;
  void kick() override { below_->kick(); }
  void reap(std::vector<IoCompletion>& completions) override { below_->reap(completions); }
  void wait() override { below_->wait(); }
  int completion_fd() const override { return below_->completion_fd(); }
  u32 in_flight_count() const override { return below_->in_flight_count(); }

 private:
  // -1: this operation is not for the direct descriptor, or the file has none.
  int direct_fd(const IoOperation& operation);

  const std::unique_ptr<IoEngine> below_;
  std::unordered_map<int, base::Fd> direct_;  // by the caller's descriptor
};

}  // namespace blockdev
