// CrashJudge: whether what a crash left keeps the promise: an image that checks clean or with leaks
// only, every flushed sector there, every other one old or new.
//
// Thread: one.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "blockdev/disk_spec.h"
#include "blockdev/layer.h"
#include "tests/blockdev/support/sector_history.h"
#include "tests/blockdev/support/sparse_image.h"

namespace blockdev::test {

// `qemu-img check` of `path`: 0 clean, 3 leaks; anything else comes with what it printed.
struct QemuVerdict {
  int status = 0;
  std::string output;
  bool is_consistent() const { return status == 0 || status == 3; }
};
QemuVerdict qemu_check(const std::string& path);

class CrashJudge final {
 public:
  // `directory` is where QEMU finds the layers below; a file of this object's own goes there.
  CrashJudge(const SectorHistory& history, ImageFormat format, LayerList lower,
             const std::string& directory);

  // Our checker and our reader. Nothing: the promise is kept.
  std::optional<std::string> judge(const SparseImage& image, u64 time);
  // qemu-img check.
  std::optional<std::string> judge_by_qemu(const SparseImage& image);

 private:
  std::optional<std::string> check_tables();
  std::optional<std::string> check_contents(u64 time);

  const SectorHistory& history_;
  ImageFormat format_;
  LayerList lower_;
  ImageSlot slot_ = ImageSlot::in_memory();
  std::string qemu_path_;
  ImageSlot qemu_slot_;
  std::vector<u8> bytes_;
};

}  // namespace blockdev::test
