#include "vmm/reverter.h"

#include <sys/random.h>

#include <algorithm>

#include "snapshot/memory_file.h"
#include "snapshot/state_file.h"
#include "vmm/base/check.h"
#include "vmm/base/planted_fault.h"
#include "vmm/kvm/compare_states.h"
#include "vmm/snapshot_mark.h"
#include "vmm/stopwatch.h"

namespace vmm {

// Where the time goes, for the result.
class Phases final {
 public:
  explicit Phases(control::RevertResult& result) : result_(result) { result.phases_us.reserve(8); }
  void done(const char* name) { result_.phases_us.emplace_back(name, stopwatch_.lap_us()); }
  u64 total_us() const { return stopwatch_.total_us(); }

 private:
  control::RevertResult& result_;
  Stopwatch stopwatch_;
};

namespace {

// Of Machine::statefuls(): the processors are restored first.
constexpr std::size_t kProcessorsIndex = 0;

// Zapping single pages costs 2 us each; from here on, dropping all of KVM's shadow tables and faulting
// a guest's usual working set in again is cheaper.
constexpr std::size_t kMaximumZappedPages = 128;
static_assert(kMaximumZappedPages <= kvm::PageZapper::kMaximumPages);

devices::Generation random_generation() {
  devices::Generation generation;
  CHECK(::getrandom(generation.data(), generation.size(), 0) ==
        static_cast<ssize_t>(generation.size()));
  return generation;
}

kvm::ClockPolicy to_kvm(control::ClockPolicy policy) {
  return policy == control::ClockPolicy::frozen ? kvm::ClockPolicy::frozen
                                                : kvm::ClockPolicy::realtime;
}

// The layers of a snapshot mean something only above the images that they were taken above.
Result<void> check_disks(const snapshot::Manifest& manifest, std::span<const DiskMark> disks) {
  if (manifest.disks.size() != disks.size()) {
    return make_error(ErrorKind::corrupt, "the manifest has {} disks, its machine has {}",
                      manifest.disks.size(), disks.size());
  }
  for (std::size_t i = 0; i < disks.size(); ++i) {
    const std::vector<snapshot::BaseImage>& wanted = manifest.disks[i].bases;
    const std::vector<snapshot::BaseImage>& here = disks[i].bases;
    if (!std::ranges::equal(wanted, here, [](const auto& a, const auto& b) {
          return a.path == b.path && a.format == b.format && a.size_bytes == b.size_bytes &&
                 a.mtime_ns == b.mtime_ns;
        })) {
      return make_error(ErrorKind::wrong_state,
                        "disk \"{}\" was taken above {} images, \"{}\" first; open are {}, \"{}\" "
                        "first",
                        manifest.disks[i].name, wanted.size(), wanted.front().path, here.size(),
                        here.empty() ? "" : here.front().path)
          .with_hint(
              "put the files back as they were; a snapshot cannot be used over another disk");
    }
  }
  return {};
}

// As large as the disk is here: what a revert puts below it has to fit.
Result<void> check_size(const snapshot::Disk& described, const DiskMark& mark,
                        const blockdev::BlockBackend& disk) {
  const auto check = [&](std::string_view what, u64 bytes) -> Result<void> {
    if (bytes == disk.size_bytes()) return {};
    return make_error(ErrorKind::corrupt, "disk \"{}\" has {} bytes here, {} {}", described.name,
                      disk.size_bytes(), bytes, what);
  };
  TRY(check("in the manifest", described.virtual_bytes));
  for (const MarkedLayer& layer : mark.layers) {
    TRY(check(fmt::format("in \"{}\"", layer.file->file), layer.layer->size_bytes()));
  }
  if (mark.images.empty()) return {};
  return check(fmt::format("in \"{}\"", mark.bases.back().path), mark.images.front()->size_bytes());
}

const snapshot::Section* find_section(std::span<const snapshot::Section> sections,
                                      std::string_view name) {
  for (const snapshot::Section& section : sections) {
    if (section.name == name) return &section;
  }
  return nullptr;
}

const kvm::ProcessorsState& processors_of(const snapshot::SnapshotNode& node) {
  return kvm::Processors::state_of(*node.states[kProcessorsIndex]);
}

// For a planted fault.
memory::PageSet all_but_last(const memory::PageSet& pages) {
  memory::PageSet fewer = pages;
  if (pages.empty()) return fewer;
  u64 last = 0;
  pages.for_each_run([&](u64 first, u64 count) { last = first + count - 1; });
  fewer.words_to_fill()[last / 64] &= ~(u64{1} << (last % 64));
  return fewer;
}

}  // namespace

Reverter::Reverter(const kvm::Kvm& kvm, Machine& machine, snapshot::SnapshotTree& tree,
                   const snapshot::SnapshotStore& store, PersistentDisks& persistent,
                   LayerHandover& handover)
    : kvm_(kvm),
      machine_(machine),
      tree_(tree),
      store_(store),
      persistent_(persistent),
      handover_(handover),
      scratch_(machine.memory().page_count()) {
  rewritten_tables_.reserve(kMaximumZappedPages + 1);
}

Result<void> Reverter::learn_host() {
  if (!stale_) {
    stale_ = TRY_CONTEXT(kvm::find_stale_translations(kvm_), "test how this host's KVM reverts");
    machine_.processors().set_root_policy(*stale_ == kvm::StaleTranslations::shadow_tables
                                              ? kvm::RootPolicy::reload
                                              : kvm::RootPolicy::keep);
  }
  return {};
}

Result<snapshot::SnapshotNode*> Reverter::adopt(
    std::shared_ptr<const snapshot::SnapshotObject> object, std::vector<DiskMark> disks) {
  const snapshot::Manifest& manifest = object->manifest();
  if (snapshot::SnapshotNode* const known = tree_.find(manifest.uuid); known != nullptr) {
    return known;
  }
  TRY(check_disks(manifest, disks));
  snapshot::SnapshotNode node;
  node.uuid = manifest.uuid;
  node.name = manifest.name;

  const base::Fd memory_file =
      TRY(snapshot::open_memory_file(object->directory(), manifest.memory[0]));
  node.image = TRY(snapshot::MemoryImage::of_file(memory_file, machine_.memory().size_bytes()));

  const base::Fd state_file = TRY(object->open_file(manifest.state.file));
  const std::vector<snapshot::Section> sections =
      TRY(snapshot::read_state_file(state_file, manifest.state));
  if (sections.size() != machine_.statefuls().size()) {
    return make_error(ErrorKind::corrupt, "state has {} sections, this machine has {} devices",
                      sections.size(), machine_.statefuls().size());
  }
  for (base::Stateful* stateful : machine_.statefuls()) {
    const snapshot::Section* section = find_section(sections, stateful->state_name());
    if (section == nullptr) {
      return make_error(ErrorKind::corrupt, "state has no section \"{}\"", stateful->state_name());
    }
    node.states.push_back(TRY_CONTEXT(stateful->decode(section->payload),
                                      fmt::format("section \"{}\"", section->name)));
  }
  TRY(machine_.validate_states(node.states));

  auto mark = std::make_unique<SnapshotMark>();
  for (std::size_t i = 0; i < disks.size(); ++i) {
    for (const snapshot::DiskLayer& layer : manifest.disks[i].layers) {
      blockdev::OpenedLayer opened = TRY(blockdev::open_layer_file(store_.layer_path(layer)));
      disks[i].layers.push_back(
          {.layer = std::move(opened.layer), .sealed = nullptr, .frozen = nullptr, .file = layer});
    }
    TRY(check_size(manifest.disks[i], disks[i], *machine_.disks()[i]->backend));
    mark->disks.push_back(std::move(disks[i]));
  }
  mark->parent = manifest.parent;
  mark->object = std::move(object);
  node.mark = std::move(mark);
  return &tree_.adopt(std::move(node));
}

tl::expected<control::RevertResult, RevertFailure> Reverter::revert(
    snapshot::SnapshotNode& target, const control::RevertRequest& request, bool running) {
  const auto refused = [](Error error) {
    return tl::unexpected(RevertFailure{std::move(error), false});
  };
  const auto halted = [](Error error) {
    return tl::unexpected(RevertFailure{std::move(error), true});
  };
  if (Result<void> learnt = learn_host(); !learnt) return refused(learnt.error());

  control::RevertResult result;
  result.snapshot = target.name;
  Phases phases(result);
  Result<std::unique_ptr<DiskSwitch>> disk_switch = persistent_.prepare_rebase(target);
  if (!disk_switch) return refused(disk_switch.error());
  if (!persistent_.empty()) phases.done("fresh-disks");
  if (running) machine_.quiesce();
  phases.done("pause");
  machine_.processors().set_clock_policy(to_kvm(request.clock));
  if (Result<void> done = restore_memory_and_processors(target, result, phases); !done) {
    return halted(done.error());
  }
  // Before the layers are compared with the target's.
  handover_.carry_out(machine_);
  for (std::size_t i = 0; i < machine_.disks().size(); ++i) {
    blockdev::Overlay* const overlay = machine_.disks()[i]->overlay;
    if (overlay == nullptr || base::planted("disk")) continue;
    result.clusters += overlay->rebase_on(mark_of(target).disks[i].lower()).block_count;
  }
  (*disk_switch)->rebase_on(target, tree_);
  phases.done("disks");
  if (Result<void> devices = restore_devices(target); !devices) return halted(devices.error());
  phases.done("devices");
  if (request.verify == control::Verify::yes) {
    if (Result<void> verified = verify(target); !verified) return halted(verified.error());
    phases.done("verify");
  }
  announce(devices::TimelineChange::revert);
  result.total_us = phases.total_us();
  return result;
}

// Side by side: both take about as long.
Result<void> Reverter::restore_memory_and_processors(const snapshot::SnapshotNode& target,
                                                     control::RevertResult& result,
                                                     Phases& phases) {
  const kvm::ProcessorsState& state = processors_of(target);
  machine_.begin_restoring_processors(state);
  const Result<const memory::PageSet*> pages = restore_memory(target, result, phases);
  const Result<void> restored = machine_.finish_restoring_processors();
  phases.done("processors");
  TRY_CONTEXT(restored, "state of processors");
  TRY(pages);
  TRY(refresh_translations(**pages, state));
  // Before what can fail: a revert that ends halfway may be followed by one that does not.
  tree_.reverted(target);
  phases.done("translations");
  return {};
}

Result<const memory::PageSet*> Reverter::restore_memory(const snapshot::SnapshotNode& target,
                                                        control::RevertResult& result,
                                                        Phases& phases) {
  scratch_.reset();
  TRY(machine_.collect_dirty(scratch_));
  tree_.note_dirty(scratch_);
  const memory::PageSet& pages = tree_.pages_to_revert(target);
  result.dirty_pages = pages.count();
  phases.done("collect");
  copy_pages_back(target, pages);
  tree_.copied_back(target);
  phases.done("memory");
  return &pages;
}

void Reverter::copy_pages_back(const snapshot::SnapshotNode& target, const memory::PageSet& pages) {
  rewritten_tables_.clear();
  if (base::planted("page")) {
    snapshot::restore_pages(machine_.memory(), *target.image, all_but_last(pages));
  } else if (*stale_ == kvm::StaleTranslations::shadow_tables) {
    snapshot::restore_pages_watching_tables(machine_.memory(), *target.image, pages,
                                            machine_.unwatched_pages(), kMaximumZappedPages,
                                            rewritten_tables_);
  } else {
    snapshot::restore_pages(machine_.memory(), *target.image, pages);
  }
}

// After the copy: what the guest has mapped from now on is what lies in RAM now.
//
// Dropping all shadow tables costs 60 ns for each page that the guest had mapped, and then the guest
// faults every one of them in again, which is far more. So KVM is made to forget only those of the
// pages that could have been page tables; what it has shadowed of others still holds, but for tables
// that the guest has changed and not flushed, and at these it looks when it loads its roots again.
// The limit: KVM does not watch its own writes of the clock either. A guest that has its clock written
// into a page table of its own may keep a translation from there.
Result<void> Reverter::refresh_translations(const memory::PageSet& pages,
                                            const kvm::ProcessorsState& state) {
  kvm::Vm& vm = machine_.vm();
  if (*stale_ == kvm::StaleTranslations::tlb) {
    TRY(vm.rearm_dirty(pages));
    if (!base::planted("zap")) TRY(vm.invalidate_translations(*stale_));
    return {};
  }
  // First: of tables that are gone nothing has to be write-protected, and zapping single pages logs
  // them as dirty.
  const bool zapped = TRY(zap_rewritten_tables(state));
  if (!zapped && !base::planted("zap")) {
    TRY(vm.invalidate_translations(*stale_));
    machine_.forget_unwatched();
  }
  return vm.rearm_dirty(pages);
}

Result<bool> Reverter::zap_rewritten_tables(const kvm::ProcessorsState& state) {
  if (rewritten_tables_.size() > kMaximumZappedPages) return false;
  if (rewritten_tables_.empty() || base::planted("zap")) return true;
  for (u64& page : rewritten_tables_) page = machine_.memory().gpa_of_page(page).value;
  return machine_.zap_pages(rewritten_tables_, state);
}

Result<void> Reverter::restore_devices(const snapshot::SnapshotNode& node) {
  if (base::planted_once("states")) return make_error(ErrorKind::failed, "planted");
  machine_.forget_requests();
  for (std::size_t i = kProcessorsIndex + 1; i < node.states.size(); ++i) {
    base::Stateful& stateful = *machine_.statefuls()[i];
    if (base::planted("device") && stateful.state_name() == "virtio-mmio.0") continue;
    TRY_CONTEXT(stateful.restore_state(*node.states[i]),
                fmt::format("state of {}", stateful.state_name()));
  }
  return {};
}

Result<void> Reverter::restore_states(const snapshot::SnapshotNode& node,
                                      control::ClockPolicy clock, devices::TimelineChange change) {
  machine_.processors().set_clock_policy(to_kvm(clock));
  machine_.begin_restoring_processors(processors_of(node));
  TRY_CONTEXT(machine_.finish_restoring_processors(), "state of processors");
  TRY(restore_devices(node));
  tree_.reverted(node);
  announce(change);
  return {};
}

void Reverter::announce(devices::TimelineChange change) {
  const devices::Generation generation = random_generation();
  for (devices::Device* device : machine_.devices()) device->timeline_changed(change, generation);
}

// What may differ: nothing but the clocks, which went on. Of the disks it looks only at that nothing
// is left above the snapshot's layers; `snapshot check` reads these.
Result<void> Reverter::verify(const snapshot::SnapshotNode& node) {
  const kvm::ProcessorsState& expected = processors_of(node);
  const kvm::ProcessorsState found = TRY(machine_.processors().try_save());
  TRY(kvm::compare_states(expected, found));

  memory::PageSet allowed(machine_.memory().page_count());
  for (const Gpa page : kvm::clock_pages(expected)) {
    if (const auto offset = machine_.memory().ram_offset(page, 1)) {
      allowed.insert(*offset / base::kPageBytes);
    }
  }
  const snapshot::Comparison memory =
      snapshot::compare_all(machine_.memory(), *node.image, allowed);
  if (!memory.equal()) {
    // It may be the snapshot's file that has changed, and the machine is right.
    if (const auto& object = mark_of(node).object; object != nullptr) {
      TRY_CONTEXT(snapshot::verify_memory_file(object->directory(), object->manifest().memory[0]),
                  "the snapshot is damaged");
    }
    return make_error(ErrorKind::corrupt,
                      "{} pages of memory differ after the revert, page {} first",
                      memory.differing_pages, memory.first_page);
  }
  for (std::size_t i = kProcessorsIndex + 1; i < node.states.size(); ++i) {
    const base::Stateful& stateful = *machine_.statefuls()[i];
    if (stateful.encode(*stateful.save_state()) != stateful.encode(*node.states[i])) {
      return make_error(ErrorKind::corrupt, "the state of {} differs after the revert",
                        stateful.state_name());
    }
  }
  for (const auto& disk : machine_.disks()) {
    if (disk->overlay != nullptr && disk->overlay->active_block_count() != 0) {
      return make_error(ErrorKind::corrupt, "a disk has blocks written after the snapshot");
    }
  }
  return {};
}

}  // namespace vmm
