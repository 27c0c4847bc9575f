#include "tests/blockdev/support/durable_image.h"

#include <fcntl.h>
#include <fmt/format.h>

#include "blockdev/image_chain.h"
#include "tests/blockdev/support/qemu_tools.h"

namespace blockdev::test {
namespace {

// Stamps of layers are apart from those of requests, and from each other's.
Stamp layer_stamp(u64 level, u64 sector) { return ((level + 1) << 56) | (sector + 1); }

}  // namespace

std::string ImageShape::describe() const {
  std::string text = fmt::format("{} v{} of {} bytes, clusters of {}{}, refcounts of {} bits",
                                 image_format_name(format), version, size_bytes, cluster_bytes(),
                                 is_extended ? " extended" : "", refcount_bits);
  constexpr const char* kNames[] = {"raw", "qcow2", "compressed qcow2", "extended qcow2"};
  for (const BelowKind kind : below) text += fmt::format(", over {}", kNames[u64(kind)]);
  return text;
}

DurableImage::DurableImage(const std::string& directory, const ImageShape& shape,
                           QemuDaemon& daemon, u64 seed)
    : shape_(shape) {
  std::mt19937_64 random(seed);
  chain_.push_back({directory + "/top", shape.format});
  for (u64 i = 0; i < shape.below.size(); ++i) {
    const bool is_raw = shape.below[i] == BelowKind::raw;
    chain_.push_back(
        {fmt::format("{}/below{}", directory, i), is_raw ? ImageFormat::raw : ImageFormat::qcow2});
  }
  for (u64 level = chain_.size(); level-- > 0;) {
    u64 size = shape.size_bytes;
    if (level == 1) size = static_cast<u64>(static_cast<i64>(size) + shape.below_extra_bytes);
    // QEMU compresses whole clusters.
    const bool is_packed = level > 0 && shape.below[level - 1] == BelowKind::compressed;
    if (is_packed && size > 64 * base::kKiB) size = size / (64 * base::kKiB) * (64 * base::kKiB);
    make_layer(level, size, daemon, random);
  }
}

void DurableImage::make_layer(u64 level, u64 size_bytes, QemuDaemon& daemon,
                              std::mt19937_64& random) {
  const BackingSpec& image = chain_[level];
  if (image.format == ImageFormat::raw) {
    run_ok(fmt::format("rm -f {0} && truncate -s {1} {0}", image.path, size_bytes));
  } else {
    std::string options = "cluster_size=64k";
    if (level == 0) {
      options = fmt::format("compat={},cluster_size={},extended_l2={},refcount_bits={}",
                            shape_.version == 2 ? "0.10" : "1.1", shape_.cluster_bytes(),
                            shape_.is_extended ? "on" : "off", shape_.refcount_bits);
    } else if (shape_.below[level - 1] == BelowKind::extended) {
      options = "cluster_size=32k,extended_l2=on";
    } else if (size_bytes < 4 * base::kMiB) {
      options = "cluster_size=4k";
    }
    const std::string backing = level + 1 == chain_.size()
                                    ? ""
                                    : fmt::format("-b {} -F {}", chain_[level + 1].path,
                                                  image_format_name(chain_[level + 1].format));
    run_ok(fmt::format("qemu-img create -q -f qcow2 -o {} {} {} {}", options, backing, image.path,
                       size_bytes));
  }
  const std::vector<Stamp> below = std::move(stamps_);
  stamps_.assign(size_bytes / kSectorBytes, kZeroStamp);
  std::copy_n(below.begin(), std::min(below.size(), stamps_.size()), stamps_.begin());
  fill(level, size_bytes, daemon, random);
}

// Writes some clusters, a few of them in part, and zeroes some, so that every state occurs.
void DurableImage::fill(u64 level, u64 size_bytes, QemuDaemon& daemon, std::mt19937_64& random) {
  const double share = level == 0 ? shape_.filled : 0.5;
  if (share == 0) return;
  const bool compress =
      level == 0 ? shape_.has_compressed : shape_.below[level - 1] == BelowKind::compressed;
  const std::vector<BackingSpec> chain(chain_.begin() + static_cast<std::ptrdiff_t>(level),
                                       chain_.end());
  const u64 unit = level == 0                                       ? shape_.cluster_bytes()
                   : chain[0].format == ImageFormat::raw            ? 4096
                   : shape_.below[level - 1] == BelowKind::extended ? 32 * base::kKiB
                   : size_bytes < 4 * base::kMiB                    ? 4096
                                                                    : 64 * base::kKiB;
  std::uniform_real_distribution<double> chance(0, 1);
  std::vector<u8> bytes;
  std::vector<bool> is_packed(size_bytes / unit + 1);
  if (compress && size_bytes % unit == 0) {
    QemuDisk disk(daemon, chain, QemuDisk::Access::compressing);
    for (u64 at = 0; at + unit <= size_bytes; at += unit) {
      if (chance(random) > share / 2) continue;
      // One stamp packs so well that many clusters share a host cluster, which then is never freed;
      // different ones take half of what they are.
      const bool packs_well = chance(random) < 0.3;
      bytes.assign(unit, 0);
      for (u64 i = 0; i < unit / kSectorBytes; ++i) {
        const u64 sector = at / kSectorBytes + i;
        stamps_[sector] = layer_stamp(level, packs_well ? at / kSectorBytes : sector);
        fill_stamp(std::span(bytes).subspan(i * kSectorBytes, kSectorBytes), stamps_[sector]);
      }
      disk.write(at, bytes);
      is_packed[at / unit] = true;
    }
  }
  QemuDisk disk(daemon, chain, QemuDisk::Access::writable, unit);
  for (u64 at = 0; at < size_bytes; at += unit) {
    if (is_packed[at / unit] || chance(random) > share) continue;
    u64 length = std::min(unit, size_bytes - at);
    u64 offset = at;
    if (chance(random) < 0.2) {
      offset += length / 2 / kSectorBytes * kSectorBytes;
      length = at + length - offset;
    }
    if (length == 0) continue;
    const bool is_zero = chance(random) < 0.25;
    bytes.assign(length, 0);
    for (u64 i = 0; i < length / kSectorBytes; ++i) {
      const u64 sector = offset / kSectorBytes + i;
      stamps_[sector] = is_zero ? kZeroStamp : layer_stamp(level, sector);
      fill_stamp(std::span(bytes).subspan(i * kSectorBytes, kSectorBytes), stamps_[sector]);
    }
    const Unmap unmap = chance(random) < 0.5 ? Unmap::yes : Unmap::no;
    if (is_zero) {
      disk.write_zeroes(offset, length, unmap);
    } else {
      disk.write(offset, bytes);
    }
  }
  disk.flush();
}

void DurableImage::tell(SectorHistory& history) const {
  for (u64 sector = 0; sector < stamps_.size(); ++sector) {
    history.set_initial(sector, stamps_[sector]);
  }
}

LayerList DurableImage::lower_layers() const {
  if (chain_.size() < 2) return {};
  DiskSpec spec;
  spec.path = chain_[1].path;
  spec.format = chain_[1].format;
  spec.backing.assign(chain_.begin() + 2, chain_.end());
  return open_image_chain(spec).value().layers;
}

Result<std::unique_ptr<Disk>> open_durable(const std::vector<BackingSpec>& chain,
                                           const DiskOptions& options) {
  DiskSpec spec;
  spec.path = chain.front().path;
  spec.format = chain.front().format;
  spec.mode = DiskMode::persist;
  spec.backing.assign(chain.begin() + 1, chain.end());
  return open_disk(spec, options);
}

}  // namespace blockdev::test
