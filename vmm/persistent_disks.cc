#include "vmm/persistent_disks.h"

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "blockdev/qcow2_rebase.h"
#include "vmm/base/check.h"
#include "vmm/base/log.h"

namespace vmm {
namespace {

std::string file_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

void remove_file(const std::string& path) {
  if (::unlink(path.c_str()) == 0 || errno == ENOENT) return;
  base::log(base::LogLevel::warning, "{}", errno_error("remove \"{}\"", path).message());
}

}  // namespace

DiskSwitch::~DiskSwitch() {
  if (state_ == State::prepared) {
    for (const WrittenFile& fresh : fresh_) remove_file(fresh.file.path);
    disks_.release();
  } else if (state_ == State::switched) {
    disks_.settle_later(std::move(left_));
  }
}

void DiskSwitch::split() {
  CHECK(state_ == State::prepared);
  state_ = State::switched;
  for (std::size_t i = 0; i < fresh_.size(); ++i) disks_.disks_[i]->split(std::move(fresh_[i]));
  disks_.note_chains();
}

void DiskSwitch::rebase_on(const snapshot::SnapshotNode& target, snapshot::SnapshotTree& tree) {
  CHECK(state_ == State::prepared);
  state_ = State::switched;
  std::vector<MarkedLayer> left_below;
  for (std::size_t i = 0; i < fresh_.size(); ++i) {
    PersistentDisk& disk = *disks_.disks_[i];
    left_below.insert(left_below.end(), disk.below().layers.begin(), disk.below().layers.end());
    left_.push_back(disk.rebase_on(std::move(fresh_[i]), mark_of(target).disks[disk.slot()]));
    // The user's own file is only ever left by freezing it.
    CHECK(left_.back().file.owner == FileOwner::vm);
  }
  // First: a snapshot that is settled just now would write a record with the files that go.
  disks_.note_chains();
  for (const WrittenFile& left : left_) disks_.retire(left.file.path);
  disks_.retire_unneeded(left_below, tree);
}

void DiskSwitch::settle() {
  CHECK(state_ == State::switched);
  state_ = State::settled;
  // What failed is in the log, and flushes tell the guest.
  const Result<void> settled = disks_.settle();
  disks_.release();
}

PersistentDisks::~PersistentDisks() = default;

void PersistentDisks::add(PersistentDisk::Parts parts) {
  disks_.push_back(std::make_unique<PersistentDisk>(vm_directory_, std::move(parts)));
  note_chains();
}

const PersistentDisk* PersistentDisks::find(std::size_t slot) const {
  for (const auto& disk : disks_) {
    if (disk->slot() == slot) return disk.get();
  }
  return nullptr;
}

Result<std::unique_ptr<DiskSwitch>> PersistentDisks::prepare_split(const snapshot::Uuid& owner) {
  hold();
  auto prepared = std::unique_ptr<DiskSwitch>(new DiskSwitch(*this));
  for (const auto& disk : disks_) {
    prepared->fresh_.push_back(TRY(disk->make_fresh(disk->backing_name(owner))));
    TRY_CONTEXT(disk->disk().flush(), fmt::format("disk {}", disk->name()));
  }
  return prepared;
}

Result<std::unique_ptr<DiskSwitch>> PersistentDisks::prepare_rebase(
    const snapshot::SnapshotNode& target) {
  hold();
  auto prepared = std::unique_ptr<DiskSwitch>(new DiskSwitch(*this));
  for (const auto& disk : disks_) {
    const DiskMark& mark = mark_of(target).disks[disk->slot()];
    prepared->fresh_.push_back(
        TRY(disk->make_fresh(top_backing_name(mark, target.uuid, disk->slot()))));
  }
  return prepared;
}

void PersistentDisks::hold() {
  for (const auto& disk : disks_) disk->gate().hold();
}

void PersistentDisks::release() {
  for (const auto& disk : disks_) disk->gate().release();
}

void PersistentDisks::note_chains() {
  std::vector<Chain> chains;
  for (const auto& disk : disks_) {
    chains.push_back({disk->slot(), disk->name(), disk->disk().size_bytes(), disk->file(),
                      disk->disk().top(), disk->below()});
  }
  base::MutexLock lock(mutex_);
  chains_ = std::move(chains);
}

void PersistentDisks::retire(std::string path) {
  base::MutexLock lock(mutex_);
  retired_.push_back(std::move(path));
}

void PersistentDisks::retire_unneeded(const std::vector<MarkedLayer>& layers,
                                      snapshot::SnapshotTree& tree) {
  std::set<const FrozenFile*> unneeded;
  for (const MarkedLayer& layer : layers) {
    if (layer.frozen == nullptr || layer.frozen->file().owner == FileOwner::user) continue;
    // One that a snapshot has is retired already: the snapshot has it under a name of its own.
    if (!layer.frozen->owned()) unneeded.insert(layer.frozen.get());
  }
  if (unneeded.empty()) return;  // the usual case looks at no other snapshot
  const auto keep = [&](const DiskMark& mark) {
    for (const MarkedLayer& layer : mark.layers) unneeded.erase(layer.frozen.get());
  };
  for (const auto& disk : disks_) keep(disk->below());
  for (const snapshot::SnapshotNode* node : tree.nodes()) {
    for (const DiskMark& mark : mark_of(*node).disks) keep(mark);
  }
  for (const FrozenFile* frozen : unneeded) retire(frozen->file().path);
}

Result<void> PersistentDisks::settle() {
  base::MutexLock one_at_a_time(settle_mutex_);
  std::vector<Chain> chains;
  std::vector<std::string> retired;
  {
    base::MutexLock lock(mutex_);
    chains = chains_;
    retired.swap(retired_);
  }
  const Result<void> done = make_durable(chains);
  blockdev::BlockStatus status = blockdev::BlockStatus::ok;
  if (done) {
    for (const std::string& path : retired) remove_file(path);
  } else {
    base::log(base::LogLevel::error, "{}; until that works, what the guest flushes fails",
              done.error().message());
    status = done.error().kind() == ErrorKind::no_space ? blockdev::BlockStatus::no_space
                                                        : blockdev::BlockStatus::io_error;
  }
  for (const auto& disk : disks_) disk->gate().fail(status);
  base::MutexLock lock(mutex_);
  has_failed_ = !done;
  if (!done) retired_.insert(retired_.end(), retired.begin(), retired.end());
  return done;
}

Result<void> PersistentDisks::make_durable(const std::vector<Chain>& chains) const {
  std::vector<snapshot::DiskHead> heads;
  for (const Chain& chain : chains) {
    for (const MarkedLayer& layer : chain.below.layers) {
      if (layer.frozen != nullptr) TRY(layer.frozen->finish());
    }
    if (chain.file.owner == FileOwner::user) continue;
    // An empty file must be one after a loss of power too. By a descriptor of its own: an error
    // is told once to each, and the disk's flushes must not miss it.
    const base::Fd file = TRY(base::open_file(chain.file.path, O_RDONLY));
    if (::fdatasync(file.get()) != 0) return errno_error("sync \"{}\"", chain.file.path);
    heads.push_back(head_of(chain));
  }
  if (heads.empty()) return {};
  TRY(snapshot::write_disk_heads(vm_directory_, heads));
  // Whoever made the VM's directory was in a hurry.
  return base::sync_directory(std::filesystem::path(vm_directory_).parent_path());
}

// REQUIRES: all below is finished.
snapshot::DiskHead PersistentDisks::head_of(const Chain& chain) {
  snapshot::DiskHead head{.file = file_name(chain.file.path),
                          .frozen = {},
                          .below = {.slot = chain.slot,
                                    .name = chain.name,
                                    .mode = "persist",
                                    .virtual_bytes = chain.size_bytes,
                                    .bases = chain.below.bases,
                                    .layers = {}}};
  for (const MarkedLayer& layer : chain.below.layers) {
    if (const std::optional<snapshot::DiskLayer> file = layer.described(); file) {
      head.below.layers.push_back(*file);
    } else if (layer.frozen->file().owner == FileOwner::user) {
      head.below.bases.push_back(layer.frozen->base());
    } else {
      head.frozen.push_back(file_name(layer.frozen->file().path));
    }
  }
  return head;
}

// `left` goes there too: that frees its tables.
void PersistentDisks::settle_later(std::vector<WrittenFile> left) {
  background_.post([this, left = std::move(left)] {
    const Result<void> settled = settle();
    release();
  });
}

void PersistentDisks::try_again() {
  {
    base::MutexLock lock(mutex_);
    if (!has_failed_) return;
  }
  begin_to_settle();
}

void PersistentDisks::begin_to_settle() {
  hold();
  settle_later({});
}

std::vector<std::string> PersistentDisks::describe_heads() const {
  std::vector<std::string> heads;
  for (const auto& disk : disks_) {
    if (disk->file().owner == FileOwner::user) continue;
    heads.push_back(fmt::format("disk {}: what was written since the last snapshot is in \"{}\"",
                                disk->name(), disk->file().path));
  }
  return heads;
}

Result<void> PersistentDisks::close() {
  // Behind what happens in the background, so that the record is of now when this returns.
  Result<void> result = disks_.empty() ? Result<void>() : settle();
  for (const auto& disk : disks_) {
    const Result<void> flushed = disk->disk().flush();
    const Result<void> closed = flushed ? disk->disk().close() : flushed;
    const Result<void> named = closed ? name_what_lies_below(*disk) : closed;
    if (named || !result) continue;
    result = Error(named.error()).with_context(fmt::format("disk {}", disk->name()));
  }
  return result;
}

// A file was made above one that a snapshot was to have. If that failed, it is still in the VM's
// directory, and tools that follow the names inside images have to find it there.
Result<void> PersistentDisks::name_what_lies_below(const PersistentDisk& disk) const {
  std::optional<std::string> below;
  for (const MarkedLayer& layer : disk.below().layers) {
    const bool is_ours = layer.frozen != nullptr && layer.frozen->file().owner == FileOwner::vm &&
                         !layer.frozen->owned();
    if (is_ours && below) TRY(layer.frozen->set_backing_name(*below));
    below = std::nullopt;
    if (!is_ours) continue;
    below = fmt::format("../../vms/{}/{}", file_name(vm_directory_),
                        file_name(layer.frozen->file().path));
  }
  if (!below) return {};
  const base::Fd fd = TRY(base::open_file(disk.file().path, O_RDWR));
  return blockdev::qcow2::set_backing_name(fd, *below);
}

}  // namespace vmm
