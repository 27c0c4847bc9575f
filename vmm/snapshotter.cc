#include "vmm/snapshotter.h"

#include <fcntl.h>

#include <algorithm>

#include "blockdev/layer_writer.h"
#include "snapshot/memory_file.h"
#include "snapshot/state_file.h"
#include "vmm/base/check.h"
#include "vmm/snapshot_mark.h"
#include "vmm/stopwatch.h"
#include "vmm/control/version.h"

namespace vmm {

struct Snapshotter::Job {
  // A layer to write: one of the new snapshot's, or one that an earlier attempt left behind.
  struct PendingLayer {
    std::size_t disk;
    blockdev::SealedPointer sealed;
    blockdev::LayerList below;
    blockdev::BackingName backing;
    std::string file;
  };

  explicit Job(snapshot::SnapshotDraft d) : draft(std::move(d)) {}

  Stopwatch stopwatch;
  control::SnapshotResult result;
  snapshot::SnapshotDraft draft;
  snapshot::Manifest manifest;
  std::shared_ptr<const snapshot::MemoryImage> image;
  std::vector<snapshot::Section> sections;
  std::vector<PendingLayer> layers;
  std::vector<snapshot::DiskLayer> written;  // one for each of `layers`
  std::optional<snapshot::CopyBuffer> buffer;

  Result<void> write_layers();
  Result<std::shared_ptr<const snapshot::SnapshotObject>> write(
      const snapshot::SnapshotStore& store);
};

namespace {

// How a layer's file names what lies below it: for qemu-img and for people. This program goes by
// the manifest.
blockdev::BackingName backing_name(const snapshot::BaseImage& image) {
  return {.path = image.path,
          .format = image.format == "raw" ? blockdev::ImageFormat::raw
                                          : blockdev::ImageFormat::qcow2};
}

blockdev::BackingName backing_name(const snapshot::DiskLayer& layer) {
  return {.path = fmt::format("../{}/{}", layer.owner.to_string(), layer.file),
          .format = blockdev::ImageFormat::qcow2};
}

}  // namespace

Snapshotter::Snapshotter(Machine& machine, snapshot::RamOrigin ram_origin,
                         snapshot::SnapshotTree& tree, const snapshot::SnapshotStore& store,
                         SnapshotIdentity identity, std::vector<DiskMark> disks_at_start,
                         control::Loop& loop)
    : machine_(machine),
      ram_origin_(ram_origin),
      tree_(tree),
      store_(store),
      identity_(std::move(identity)),
      disks_at_start_(std::move(disks_at_start)),
      loop_(loop),
      scratch_(machine.memory().page_count()) {}

Snapshotter::~Snapshotter() {
  if (writer_.joinable()) writer_.join();
}

void Snapshotter::create(const control::SnapshotRequest& request, bool running,
                         PausedDone paused_done, Durable durable) {
  Result<std::unique_ptr<Job>> job = prepare(request);
  if (!job) return durable(with_remedy(job.error()));
  Stopwatch pause;
  if (running) machine_.quiesce();
  machine_is_quiet();
  const Result<void> captured = capture(**job);
  if (running) machine_.resume();
  if (!captured) return durable(captured.error());
  (*job)->result.pause_us = pause.total_us();
  if (paused_done) paused_done((*job)->result);
  start_writing(std::move(*job), std::move(durable));
}

Result<std::unique_ptr<Snapshotter::Job>> Snapshotter::prepare(
    const control::SnapshotRequest& request) {
  if (is_busy()) {
    return make_error(ErrorKind::busy, "another snapshot of {} is still being written",
                      identity_.vm_name)
        .with_hint("try again when it is listed");
  }
  const std::string name = request.name.empty() ? unused_name() : request.name;
  TRY(snapshot::check_plain_name("snapshot", name));
  auto job = std::make_unique<Job>(TRY(store_.begin(identity_.vm_name, name)));
  job->result.name = name;
  job->result.uuid = job->draft.uuid().to_string();
  job->manifest.uuid = job->draft.uuid();
  job->manifest.vm = identity_.vm_name;
  job->manifest.name = name;
  job->manifest.description = request.description;
  job->manifest.program = control::kVersion;
  job->manifest.machine = machine_.config().to_json();
  job->manifest.host = identity_.host;
  if (const snapshot::SnapshotNode* current = tree_.current(); current != nullptr) {
    const SnapshotMark& mark = mark_of(*current);
    job->manifest.parent = mark.object != nullptr ? std::optional(current->uuid) : mark.parent;
  }
  // The page faults of the copy's destination are taken now, not in the pause. How much will have
  // changed is a guess from what is known before it.
  const u64 expected_pages =
      tree_.current() == nullptr
          ? snapshot::populated_pages(machine_.memory(), ram_origin_).count()
          : tree_.dirty_since_current().count();
  job->buffer = TRY(snapshot::CopyBuffer::prepare(machine_.memory().size_bytes(), expected_pages));
  return job;
}

Result<void> Snapshotter::capture(Job& job) {
  snapshot::SnapshotNode node;
  node.uuid = job.draft.uuid();
  node.name = job.result.name;
  job.manifest.created = snapshot::Timestamp::now();
  const bool first = tree_.current() == nullptr;
  // Logging starts with the first snapshot: until then the guest runs without its cost.
  if (machine_.vm().dirty_logging() == kvm::DirtyLogging::off) TRY(machine_.vm().start_dirty_log());
  for (base::Stateful* stateful : machine_.statefuls()) {
    node.states.push_back(stateful->save_state());
    job.sections.push_back({stateful->state_name(), stateful->encode(*node.states.back())});
  }
  scratch_.reset();
  TRY(machine_.collect_dirty(scratch_));
  if (first) {
    job.image = TRY(snapshot::copy_memory(
        machine_.memory(), snapshot::populated_pages(machine_.memory(), ram_origin_),
        std::move(*job.buffer), nullptr));
  } else {
    tree_.note_dirty(scratch_);
    job.image =
        TRY(snapshot::copy_memory(machine_.memory(), tree_.dirty_since_current(),
                                  std::move(*job.buffer), tree_.current()->image));
  }
  node.image = job.image;
  TRY(machine_.vm().rearm_dirty(first ? scratch_ : tree_.dirty_since_current()));
  auto mark = std::make_unique<SnapshotMark>();
  mark->parent = job.manifest.parent;
  for (std::size_t i = 0; i < machine_.disks().size(); ++i) {
    mark->disks.push_back(TRY(split(i)));
  }
  describe_disks(*mark, job);
  node.mark = std::move(mark);
  tree_.add(std::move(node));
  return {};
}

// Splits a disk at T. What lies below is taken from the overlay itself: a layer that no snapshot
// knows was left behind by one that could not be written.
Result<DiskMark> Snapshotter::split(std::size_t disk_index) {
  blockdev::Overlay* const overlay = machine_.disks()[disk_index]->overlay;
  DiskMark mark = disks_at_start_[disk_index];
  if (overlay == nullptr) return mark;
  mark.layers.clear();
  TRY(overlay->seal());
  const blockdev::LayerList& lower = overlay->lower();
  for (std::size_t n = lower.size() - mark.images.size(); n-- > 0;) {
    const MarkedLayer* const known = find_layer(disk_index, lower[n]);
    mark.layers.push_back(
        known != nullptr
            ? *known
            : MarkedLayer{.layer = lower[n],
                          .sealed = std::dynamic_pointer_cast<const blockdev::SealedLayer>(lower[n]),
                          .file = std::nullopt});
  }
  return mark;
}

const MarkedLayer* Snapshotter::find_layer(std::size_t disk_index,
                                           const blockdev::LayerPointer& layer) {
  for (const snapshot::SnapshotNode* node : tree_.nodes()) {
    for (const MarkedLayer& marked : mark_of(*node).disks[disk_index].layers) {
      if (marked.layer == layer) return &marked;
    }
  }
  return nullptr;
}

Error Snapshotter::with_remedy(Error error) const {
  if (error.kind() != ErrorKind::no_space || !error.hint().empty()) return error;
  return std::move(error).with_hint(fmt::format(
      "nothing of it was kept, the VM goes on; make room for \"{}\", then take it again",
      store_.path()));
}

// Lists what is to be written, and what the manifest will say of the disks.
void Snapshotter::describe_disks(const SnapshotMark& mark, Job& job) {
  for (std::size_t i = 0; i < mark.disks.size(); ++i) {
    const blockdev::Disk& disk = *machine_.disks()[i];
    const DiskMark& marked = mark.disks[i];
    snapshot::Disk described{.slot = static_cast<u32>(i),
                             .name = fmt::format("vd{}", static_cast<char>('a' + i)),
                             .mode = disk.overlay != nullptr ? "overlay" : "ro",
                             .virtual_bytes = disk.backend->size_bytes(),
                             .bases = marked.bases,
                             .layers = {}};
    blockdev::LayerList below = marked.images;
    blockdev::BackingName backing = backing_name(marked.bases.back());
    for (std::size_t n = 0; n < marked.layers.size(); ++n) {
      const MarkedLayer& layer = marked.layers[n];
      if (layer.file) {
        described.layers.push_back(*layer.file);
        backing = backing_name(*layer.file);
      } else {
        const bool is_own = n + 1 == marked.layers.size();
        const std::string file = is_own ? snapshot::disk_layer_file(static_cast<u32>(i))
                                        : fmt::format("disk-{}-below-{}.qcow2", i, n);
        job.layers.push_back({i, layer.sealed, below, backing, file});
        backing = {.path = file, .format = blockdev::ImageFormat::qcow2};
      }
      below.insert(below.begin(), layer.layer);
    }
    job.manifest.disks.push_back(std::move(described));
  }
}

std::string Snapshotter::unused_name() {
  const auto taken = [&](const std::string& name) {
    return tree_.find(name) != nullptr || store_.resolve(identity_.vm_name, name).has_value();
  };
  u32 number = 1;
  while (taken(fmt::format("s{}", number))) ++number;
  return fmt::format("s{}", number);
}

void Snapshotter::start_writing(std::unique_ptr<Job> job, Durable durable) {
  // Shared, because std::function wants to be copied.
  const std::shared_ptr<Job> shared = std::move(job);
  writer_ = std::thread([this, shared, durable = std::move(durable)] {
    auto written = std::make_shared<Result<std::shared_ptr<const snapshot::SnapshotObject>>>(
        shared->write(store_));
    loop_.post([this, shared, written, durable] { finish(*shared, std::move(*written), durable); });
  });
}

Result<void> Snapshotter::Job::write_layers() {
  for (const PendingLayer& layer : layers) {
    const base::Fd file = TRY(base::open_file_at(draft.directory(), layer.file,
                                                 O_RDWR | O_CREAT | O_EXCL, 0600));
    const blockdev::LayerFile described = TRY_CONTEXT(
        blockdev::write_layer(*layer.sealed, layer.below, layer.backing, file), layer.file);
    written.push_back({.owner = draft.uuid(),
                       .file = layer.file,
                       .size_bytes = described.file_bytes,
                       .checksum = described.checksum});
    manifest.disks[layer.disk].layers.push_back(written.back());
    result.disk_bytes += described.written_bytes;
  }
  return {};
}

Result<std::shared_ptr<const snapshot::SnapshotObject>> Snapshotter::Job::write(
    const snapshot::SnapshotStore& store) {
  manifest.memory.push_back(TRY_CONTEXT(snapshot::write_memory_file(draft.directory(), *image),
                                        "write the snapshot's memory"));
  result.memory_bytes = manifest.memory[0].allocated_bytes;
  TRY(write_layers());
  manifest.state = TRY(
      snapshot::write_state_file(draft.directory(), snapshot::kStateFile, sections));
  return std::make_shared<const snapshot::SnapshotObject>(
      TRY(store.publish(std::move(draft), manifest)));
}

void Snapshotter::finish(Job& job,
                         Result<std::shared_ptr<const snapshot::SnapshotObject>> written,
                         const Durable& durable) {
  writer_.join();
  writer_ = {};
  Result<void> adopted;
  if (written) adopted = adopt_files(job, std::move(*written));
  if (!written || !adopted) {
    Error error = written ? adopted.error() : written.error();
    tree_.find(job.manifest.uuid)->name.clear();
    return durable(with_remedy(std::move(error))
                       .with_context(fmt::format("snapshot '{}' was not made", job.result.name)));
  }
  job.result.total_us = job.stopwatch.total_us();
  durable(job.result);
}

// From here on memory and layers are read from the files, and the copies go.
Result<void> Snapshotter::adopt_files(Job& job,
                                      std::shared_ptr<const snapshot::SnapshotObject> object) {
  snapshot::SnapshotNode* const node = tree_.find(job.manifest.uuid);
  CHECK(node != nullptr);
  const base::Fd memory_file =
      TRY(snapshot::open_memory_file(object->directory(), object->manifest().memory[0]));
  node->image = TRY(snapshot::MemoryImage::of_file(memory_file, machine_.memory().size_bytes()));
  for (std::size_t i = 0; i < job.layers.size(); ++i) {
    const Job::PendingLayer& pending = job.layers[i];
    blockdev::OpenedLayer opened =
        TRY(blockdev::open_layer_file(store_.layer_path(job.written[i])));
    // Every snapshot that rests on the layer, and the running disk when it next stands still.
    for (snapshot::SnapshotNode* other : tree_.nodes()) {
      for (MarkedLayer& layer : mark_of(*other).disks[pending.disk].layers) {
        if (layer.sealed != pending.sealed) continue;
        layer = {.layer = opened.layer, .sealed = nullptr, .file = job.written[i]};
      }
    }
    replacements_.push_back({pending.disk, pending.sealed, opened.layer});
  }
  mark_of(*node).object = std::move(object);
  return {};
}

void Snapshotter::machine_is_quiet() {
  for (const Replacement& replacement : replacements_) {
    machine_.disks()[replacement.disk]->overlay->replace_with(replacement.sealed,
                                                              replacement.durable);
  }
  replacements_.clear();
}

}  // namespace vmm
