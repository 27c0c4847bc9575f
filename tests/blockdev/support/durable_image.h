// DurableImage: an image with a chain below it, made by QEMU, whose content is stamps, and the disk
// that writes it through.

#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "blockdev/disk.h"
#include "tests/blockdev/support/qemu_daemon.h"
#include "tests/blockdev/support/sector_history.h"

namespace blockdev::test {

enum class BelowKind : u8 { raw, qcow2, compressed, extended };

struct ImageShape {
  ImageFormat format = ImageFormat::qcow2;
  u32 version = 3;
  u32 cluster_bits = 16;
  bool is_extended = false;
  u32 refcount_bits = 16;
  u64 size_bytes = 4 * base::kMiB;
  std::vector<BelowKind> below = {};  // from top to bottom
  i64 below_extra_bytes = 0;          // how much longer than the disk the layer right below is
  double filled = 0;                  // of the top's clusters, so many are written by QEMU first
  bool has_compressed = false;        // some of these are compressed

  u64 cluster_bytes() const { return u64{1} << cluster_bits; }
  u64 sector_count() const { return size_bytes / kSectorBytes; }
  std::string describe() const;
};

class DurableImage final {
 public:
  DurableImage(const std::string& directory, const ImageShape& shape, QemuDaemon& daemon, u64 seed);

  const ImageShape& shape() const { return shape_; }
  const std::string& path() const { return chain_.front().path; }
  const std::vector<BackingSpec>& chain() const { return chain_; }  // from top to bottom
  // What each sector holds.
  const std::vector<Stamp>& stamps() const { return stamps_; }
  void tell(SectorHistory& history) const;
  LayerList lower_layers() const;

 private:
  void make_layer(u64 level, u64 size_bytes, QemuDaemon& daemon, std::mt19937_64& random);
  void fill(u64 level, u64 size_bytes, QemuDaemon& daemon, std::mt19937_64& random);

  ImageShape shape_;
  std::vector<BackingSpec> chain_;
  std::vector<Stamp> stamps_;
};

// Opens `chain` in mode=persist.
Result<std::unique_ptr<Disk>> open_durable(const std::vector<BackingSpec>& chain,
                                           const DiskOptions& options);

}  // namespace blockdev::test
