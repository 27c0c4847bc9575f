#include "vmm/disk_split.h"

namespace vmm {
namespace {

// How a layer's file names what lies below it: for qemu-img and for people. This program goes by
// the manifest.
blockdev::BackingName backing_name(const snapshot::BaseImage& image) {
  return {
      .path = image.path,
      .format = image.format == "raw" ? blockdev::ImageFormat::raw : blockdev::ImageFormat::qcow2};
}

blockdev::BackingName backing_name(const snapshot::DiskLayer& layer) {
  return {.path = fmt::format("../{}/{}", layer.owner.to_string(), layer.file),
          .format = blockdev::ImageFormat::qcow2};
}

const MarkedLayer* find_layer(snapshot::SnapshotTree& tree, std::size_t disk_index,
                              const blockdev::LayerPointer& layer) {
  for (const snapshot::SnapshotNode* node : tree.nodes()) {
    for (const MarkedLayer& marked : mark_of(*node).disks[disk_index].layers) {
      if (marked.layer == layer) return &marked;
    }
  }
  return nullptr;
}

snapshot::Disk start_description(const blockdev::Disk& disk, const DiskMark& mark,
                                 std::size_t index) {
  const blockdev::DiskMode mode = disk.overlay != nullptr   ? blockdev::DiskMode::overlay
                                  : disk.durable != nullptr ? blockdev::DiskMode::persist
                                                            : blockdev::DiskMode::ro;
  return {.slot = static_cast<u32>(index),
          .name = fmt::format("vd{}", static_cast<char>('a' + index)),
          .mode = std::string(blockdev::disk_mode_name(mode)),
          .virtual_bytes = disk.backend->size_bytes(),
          .bases = mark.bases,
          .layers = {}};
}

// The files are there. What becomes of those that this process wrote is known when they are closed,
// so the job completes the lists, in this order.
snapshot::Disk describe_persistent(const blockdev::Disk& disk, const DiskMark& mark,
                                   std::size_t index, SnapshotJob& job) {
  snapshot::Disk described = start_description(disk, mark, index);
  for (std::size_t n = 0; n < mark.layers.size(); ++n) {
    const MarkedLayer& layer = mark.layers[n];
    if (const std::optional<snapshot::DiskLayer> file = layer.described(); file) {
      described.layers.push_back(*file);
      continue;
    }
    const bool is_top = n + 1 == mark.layers.size();
    job.frozen.push_back({.disk = index,
                          .frozen = layer.frozen,
                          .file = is_top ? snapshot::disk_layer_file(static_cast<u32>(index))
                                         : fmt::format("disk-{}-below-{}.qcow2", index, n),
                          .written = std::nullopt});
  }
  return described;
}

snapshot::Disk describe_disk(const blockdev::Disk& disk, const DiskMark& mark, std::size_t index,
                             SnapshotJob& job) {
  if (disk.durable != nullptr) return describe_persistent(disk, mark, index, job);
  snapshot::Disk described = start_description(disk, mark, index);
  blockdev::LayerList below = mark.images;
  blockdev::BackingName backing = backing_name(mark.bases.back());
  for (std::size_t n = 0; n < mark.layers.size(); ++n) {
    const MarkedLayer& layer = mark.layers[n];
    if (layer.file) {
      described.layers.push_back(*layer.file);
      backing = backing_name(*layer.file);
    } else {
      const bool is_own = n + 1 == mark.layers.size();
      const std::string file = is_own ? snapshot::disk_layer_file(static_cast<u32>(index))
                                      : fmt::format("disk-{}-below-{}.qcow2", index, n);
      job.layers.push_back({.disk = index,
                            .sealed = layer.sealed,
                            .below = below,
                            .backing = backing,
                            .file = file,
                            .written = {},
                            .durable = nullptr});
      backing = {.path = file, .format = blockdev::ImageFormat::qcow2};
    }
    below.insert(below.begin(), layer.layer);
  }
  return described;
}

}  // namespace

Result<DiskMark> split_disk(const Machine& machine, const PersistentDisks& persistent,
                            std::size_t disk_index, const DiskMark& at_start,
                            snapshot::SnapshotTree& tree) {
  if (const PersistentDisk* disk = persistent.find(disk_index)) return disk->below();
  blockdev::Overlay* const overlay = machine.disks()[disk_index]->overlay;
  DiskMark mark = at_start;
  if (overlay == nullptr) return mark;
  mark.layers.clear();
  TRY(overlay->seal());
  const blockdev::LayerList& lower = overlay->lower();
  for (std::size_t n = lower.size() - mark.images.size(); n-- > 0;) {
    const MarkedLayer* const known = find_layer(tree, disk_index, lower[n]);
    mark.layers.push_back(
        known != nullptr
            ? *known
            : MarkedLayer{
                  .layer = lower[n],
                  .sealed = std::dynamic_pointer_cast<const blockdev::SealedLayer>(lower[n]),
                  .frozen = nullptr,
                  .file = std::nullopt});
  }
  return mark;
}

void describe_disks(const Machine& machine, const std::vector<DiskMark>& disks, SnapshotJob& job) {
  for (std::size_t i = 0; i < disks.size(); ++i) {
    job.manifest.disks.push_back(describe_disk(*machine.disks()[i], disks[i], i, job));
  }
}

}  // namespace vmm
