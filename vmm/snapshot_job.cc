#include "vmm/snapshot_job.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockdev/disk.h"
#include "snapshot/memory_file.h"
#include "vmm/base/log.h"
#include "vmm/base/planted_fault.h"

namespace vmm {

void SnapshotJob::write(const snapshot::SnapshotStore& store) {
  // Room first: what a killed process left half-written is of no use to anybody.
  if (const Result<u32> removed = store.remove_leftovers(); !removed) {
    base::log(base::LogLevel::warning, "leftovers of snapshots stay: {}",
              removed.error().message());
  }
  outcome = write_files(store);
  if (outcome) {
    hand_over_frozen_files();
  } else {
    // The room it takes goes before the disks need some.
    const snapshot::SnapshotDraft dropped = std::move(draft);
  }
  disk_switch->settle();
  if (outcome) open_files(store);
}

Result<void> SnapshotJob::write_files(const snapshot::SnapshotStore& store) {
  // First, for it is what the guest waits for.
  TRY(take_frozen_files());
  manifest.memory.push_back(TRY_CONTEXT(snapshot::write_memory_file(draft.directory(), *image),
                                        "write the snapshot's memory"));
  result.memory_bytes = manifest.memory[0].allocated_bytes;
  TRY(write_layers());
  if (base::planted("write") && manifest.name == "bad") {
    return make_error(ErrorKind::no_space, "planted");
  }
  manifest.state =
      TRY(snapshot::write_state_file(draft.directory(), snapshot::kStateFile, sections));
  object = std::make_shared<const snapshot::SnapshotObject>(
      TRY(store.publish(std::move(draft), manifest)));
  result.disk_bytes = store.disk_bytes(manifest);
  return {};
}

Result<void> SnapshotJob::write_layers() {
  for (PendingLayer& layer : layers) {
    const base::Fd file =
        TRY(base::open_file_at(draft.directory(), layer.file, O_RDWR | O_CREAT | O_EXCL, 0600));
    const blockdev::LayerFile described = TRY_CONTEXT(
        blockdev::write_layer(*layer.sealed, layer.below, layer.backing, file), layer.file);
    layer.written = {.owner = manifest.uuid,
                     .file = layer.file,
                     .size_bytes = described.file_bytes,
                     .checksum = described.checksum};
    manifest.disks[layer.disk].layers.push_back(layer.written);
  }
  return {};
}

// The VM's directory keeps its name of a file until the record says that the snapshot has it.
Result<void> SnapshotJob::take_frozen_files() {
  for (FrozenLayer& layer : frozen) {
    TRY(layer.frozen->finish());
    snapshot::Disk& disk = manifest.disks[layer.disk];
    const DiskFile& file = layer.frozen->file();
    if (file.owner == FileOwner::user) {
      disk.bases.push_back(layer.frozen->base());
      continue;
    }
    // The one below is new in this snapshot too if an earlier snapshot could not be written, and has
    // another name than was expected when this file was made above it.
    if (const std::string* below = new_layer_below(layer); below != nullptr) {
      TRY(layer.frozen->set_backing_name(layer_backing_name(manifest.uuid, *below).path));
    }
    const std::string path = draft.file_path(layer.file);
    if (::link(file.path.c_str(), path.c_str()) != 0) {
      return errno_error("give \"{}\" to the snapshot as \"{}\"", file.path, path);
    }
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) return errno_error("\"{}\"", path);
    layer.written = {.owner = manifest.uuid,
                     .file = layer.file,
                     .size_bytes = static_cast<u64>(status.st_size),
                     .checksum = std::nullopt};
    disk.layers.push_back(*layer.written);
  }
  return {};
}

const std::string* SnapshotJob::new_layer_below(const FrozenLayer& layer) const {
  const std::string* below = nullptr;
  for (const FrozenLayer& other : frozen) {
    if (&other == &layer) return below;
    if (other.disk == layer.disk && other.written) below = &other.file;
  }
  return nullptr;
}

void SnapshotJob::hand_over_frozen_files() {
  for (const FrozenLayer& layer : frozen) {
    if (!layer.written) continue;
    layer.frozen->set_owned(*layer.written);
    persistent->retire(layer.frozen->file().path);
  }
}

void SnapshotJob::open_files(const snapshot::SnapshotStore& store) {
  const auto keep_in_memory = [this](const Error& error) {
    base::log(base::LogLevel::warning, "snapshot '{}' is made, but stays in memory too: {}",
              result.name, error.message());
  };
  if (base::planted("reopen")) return keep_in_memory(make_error(ErrorKind::failed, "planted"));
  const auto view_memory = [this]() -> Result<void> {
    const base::Fd file =
        TRY(snapshot::open_memory_file(object->directory(), object->manifest().memory[0]));
    view = TRY(snapshot::MemoryImage::of_file(file, image->size_bytes()));
    // The first revert to it is waited for; this is not.
    view->populate();
    return {};
  };
  if (const Result<void> viewed = view_memory(); !viewed) keep_in_memory(viewed.error());
  for (PendingLayer& layer : layers) {
    Result<blockdev::OpenedLayer> opened =
        blockdev::open_layer_file(store.layer_path(layer.written));
    if (opened) {
      layer.durable = std::move(opened->layer);
    } else {
      keep_in_memory(opened.error());
    }
  }
}

}  // namespace vmm
