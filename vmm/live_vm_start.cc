// LiveVm: how it begins: from a kernel or from a snapshot.

#include <sys/utsname.h>

#include <nlohmann/json.hpp>

#include "blockdev/disk.h"
#include "blockdev/qcow2_extensions.h"
#include "snapshot/memory_file.h"
#include "vmm/base/log.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/live_vm.h"

namespace vmm {
namespace {

// In manifests: never changes, whatever people are told.
std::string_view kvm_token(kvm::KvmKind kind) {
  switch (kind) {
    case kvm::KvmKind::svm: return "svm";
    case kvm::KvmKind::vmx: return "vmx";
    case kvm::KvmKind::pvm: return "pvm";
    case kvm::KvmKind::unknown: break;
  }
  return "unknown";
}

// The processor as CPUID leaf 0 and 1 describe it.
snapshot::HostIdentity host_identity(const kvm::Kvm& kvm) {
  snapshot::HostIdentity host{.kvm_kind = std::string(kvm_token(kvm.kind())),
                              .cpu_vendor = {},
                              .cpu_name = kvm::cpu_name(kvm.supported_cpuid()),
                              .kernel = {}};
  for (const kvm::CpuidEntry& leaf : kvm.supported_cpuid()) {
    if (leaf.function == 0) {
      for (const u32 word : {leaf.ebx, leaf.edx, leaf.ecx}) {
        for (u32 byte = 0; byte < 4; ++byte) {
          host.cpu_vendor.push_back(static_cast<char>(word >> (8 * byte)));
        }
      }
    }
    if (leaf.function == 1) {
      // SDM volume 2, CPUID "Version Information": the extended fields count from family 15 on.
      const u32 family = leaf.eax >> 8 & 0xf;
      host.cpu_family = family == 0xf ? family + (leaf.eax >> 20 & 0xff) : family;
      host.cpu_model = (leaf.eax >> 4 & 0xf) | (family >= 6 ? leaf.eax >> 12 & 0xf0 : 0);
    }
  }
  utsname names{};
  if (::uname(&names) == 0) host.kernel = names.release;
  return host;
}

// Of the files that a persistent disk is written to in the VM's directory.
constexpr u64 kFirstHead = 1;

snapshot::BaseImage to_base_image(const blockdev::ImageIdentity& identity) {
  return {.path = identity.path,
          .format = std::string(blockdev::image_format_name(identity.format)),
          .size_bytes = identity.size_bytes,
          .mtime_ns = identity.mtime_ns,
          .device = identity.device,
          .inode = identity.inode};
}

// `images` from top to bottom.
std::vector<snapshot::BaseImage> bases_of(std::span<const blockdev::ImageIdentity> images) {
  std::vector<snapshot::BaseImage> bases;
  for (auto image = images.rbegin(); image != images.rend(); ++image) {
    bases.push_back(to_base_image(*image));
  }
  return bases;
}

// Of a disk as it was opened, `layer_count` layers of snapshots above its images.
DiskMark mark_of_images(const blockdev::Disk& disk, std::size_t layer_count) {
  // The file that is written is nothing that the disk was started above.
  const std::size_t written = disk.durable != nullptr ? 1 : 0;
  DiskMark mark{.bases = bases_of(std::span(disk.images).subspan(written + layer_count)),
                .images = {},
                .layers = {}};
  if (disk.overlay == nullptr && disk.durable == nullptr) return mark;
  const blockdev::LayerList& lower =
      disk.overlay != nullptr ? disk.overlay->lower() : disk.durable->lower();
  mark.images = {lower.begin() + static_cast<std::ptrdiff_t>(layer_count), lower.end()};
  return mark;
}

// A snapshot's layers name the image that they lie on.
Result<void> check_names(const blockdev::Disk& disk) {
  const bool gets_layers = disk.overlay != nullptr || disk.durable != nullptr;
  if (!gets_layers || disk.images.empty()) return {};
  const std::string& path = disk.images.front().path;
  Result<void> checked = blockdev::qcow2::check_backing_name(path);
  if (checked) return {};
  return std::move(checked)
      .error()
      .with_context(fmt::format("disk \"{}\" could not have a snapshot", path))
      .with_hint("rename the file or the directory it lies in");
}

void put_gate(blockdev::Disk& disk) {
  if (disk.durable == nullptr) return;
  disk.backend = std::make_unique<blockdev::FlushGate>(std::move(disk.backend));
}

// REQUIRES: put_gate().
PersistentDisk::Parts persistent_parts(blockdev::Disk& disk, std::size_t slot, DiskFile file,
                                       DiskMark below) {
  return {.slot = static_cast<u32>(slot),
          .disk = disk.durable,
          .gate = static_cast<blockdev::FlushGate*>(disk.backend.get()),
          .file = std::move(file),
          .below = std::move(below),
          .files_made = kFirstHead};
}

}  // namespace

blockdev::DiskOptions LiveVm::disk_options() const {
  return {.overlay = {.spill_directory = home_.vms() + "/" + name_},
          .make_engine = blockdev::make_io_engine,
          .executor = nullptr};
}

std::string LiveVm::first_head_path(std::size_t slot) const {
  return fmt::format("{}/{}/{}", home_.vms(), name_,
                     head_file_name(static_cast<u32>(slot), kFirstHead));
}

Result<void> LiveVm::boot(const control::MachineConfig& config) {
  Machine::Parts parts;
  parts.memory = TRY(memory::GuestMemory::create(config.memory_bytes));
  std::vector<DiskMark> disks;
  for (const std::string& argument : config.disks) {
    const blockdev::DiskSpec spec = TRY(blockdev::parse_disk_spec(argument));
    parts.disks.push_back(TRY_CONTEXT(open_boot_disk(spec), "--disk"));
    blockdev::Disk& disk = *parts.disks.back();
    for (const std::string& warning : disk.warnings) {
      base::log(base::LogLevel::warning, "{}", warning);
    }
    disks.push_back(mark_of_images(disk, 0));
    if (disk.durable != nullptr) {
      const blockdev::ImageIdentity& top = disk.images.front();
      persistent_->add(persistent_parts(disk, disks.size() - 1,
                                        {FileOwner::user, top.path, top.format}, disks.back()));
    }
  }
  TRY(build(config, std::move(parts), snapshot::RamOrigin::zeros, std::move(disks)));
  return machine_->boot();
}

Result<std::unique_ptr<blockdev::Disk>> LiveVm::open_boot_disk(
    const blockdev::DiskSpec& spec) const {
  const bool is_written = spec.mode == blockdev::DiskMode::persist;
  if (is_written) TRY(store_->check_may_write(spec.path));
  std::unique_ptr<blockdev::Disk> disk = TRY(blockdev::open_disk(spec, disk_options()));
  // Now that it is locked: a snapshot may have come between.
  if (is_written) TRY(store_->check_may_write(spec.path));
  TRY(check_names(*disk));
  put_gate(*disk);
  return disk;
}

// The snapshot's files, above them a fresh layer: one in memory, or for a persistent disk a file.
Result<std::unique_ptr<blockdev::Disk>> LiveVm::open_snapshot_disk(
    const blockdev::DiskSpec& spec, const snapshot::Disk& described) const {
  std::vector<std::string> layers;
  for (const snapshot::DiskLayer& layer : described.layers) {
    layers.push_back(store_->layer_path(layer));
  }
  if (spec.mode != blockdev::DiskMode::persist) {
    return blockdev::open_disk_with_layers(spec, layers, disk_options());
  }
  const blockdev::BackingName backing =
      described.layers.empty()
          ? blockdev::BackingName{spec.path, spec.format}
          : layer_backing_name(described.layers.back().owner, described.layers.back().file);
  blockdev::ImageFile head =
      TRY(create_head_file(first_head_path(described.slot), described.virtual_bytes, backing));
  auto disk = TRY(blockdev::open_disk_below(spec, layers, std::move(head), disk_options()));
  put_gate(*disk);
  return disk;
}

Result<void> LiveVm::restore(const control::LaunchRequest& request) {
  const snapshot::Uuid uuid = TRY(snapshot::Uuid::parse(*request.restore_uuid));
  const auto object = std::make_shared<const snapshot::SnapshotObject>(TRY(store_->open(uuid)));
  TRY_CONTEXT(restore_object(request, object),
              fmt::format("snapshot '{}@{}'", object->manifest().vm, object->manifest().name));
  return {};
}

Result<void> LiveVm::restore_object(const control::LaunchRequest& request,
                                    std::shared_ptr<const snapshot::SnapshotObject> object) {
  const snapshot::Manifest& manifest = object->manifest();
  TRY(snapshot::check_host(manifest.host, host_identity(kvm_)));
  if (request.verify == control::Verify::yes) TRY(store_->check(*object));
  const auto config = TRY(control::MachineConfig::from_json(manifest.machine));
  if (config.disks.size() != manifest.disks.size()) {
    return make_error(ErrorKind::corrupt, "the manifest has {} disks, its machine has {}",
                      manifest.disks.size(), config.disks.size());
  }
  Machine::Parts parts;
  const base::Fd memory_file =
      TRY(snapshot::open_memory_file(object->directory(), manifest.memory[0]));
  const std::vector<memory::FilePart> data =
      TRY(snapshot::data_parts(object->directory(), manifest.memory[0]));
  parts.memory = TRY(memory::GuestMemory::create_from_file(memory_file, config.memory_bytes, data));
  parts.dirty_logging = kvm::DirtyLogging::on;
  std::vector<DiskMark> disks;
  for (std::size_t i = 0; i < config.disks.size(); ++i) {
    const blockdev::DiskSpec spec = TRY(blockdev::parse_disk_spec(config.disks[i]));
    parts.disks.push_back(TRY(open_snapshot_disk(spec, manifest.disks[i])));
    // What is open, not what the manifest says: adopting compares the two.
    disks.push_back(mark_of_images(*parts.disks.back(), manifest.disks[i].layers.size()));
  }
  TRY(build(config, std::move(parts), snapshot::RamOrigin::file, disks));
  snapshot::SnapshotNode* const node = TRY(reverter_->adopt(object, std::move(disks)));
  for (std::size_t i = 0; i < machine_->disks().size(); ++i) {
    // The same layers by the same pointers, so that later snapshots know them.
    blockdev::Disk& disk = *machine_->disks()[i];
    const DiskMark& mark = mark_of(*node).disks[i];
    if (disk.overlay != nullptr) disk.overlay->rebase_on(mark.lower());
    if (disk.durable != nullptr) {
      disk.durable->switch_to(disk.durable->top(), mark.lower());
      persistent_->add(persistent_parts(
          disk, i, {FileOwner::vm, first_head_path(i), blockdev::ImageFormat::qcow2}, mark));
    }
  }
  if (!persistent_->empty()) persistent_->begin_to_settle();
  return reverter_->restore_states(*node, request.clock, devices::TimelineChange::restore);
}

Result<void> LiveVm::build(const control::MachineConfig& config, Machine::Parts parts,
                           snapshot::RamOrigin ram_origin, std::vector<DiskMark> disks_at_start) {
  parts.kvm = &kvm_;
  parts.console = this;
  parts.observer = this;
  disks_at_start_ = std::move(disks_at_start);
  machine_ = TRY(Machine::create(config, std::move(parts)));
  tree_ = std::make_unique<snapshot::SnapshotTree>(machine_->memory().page_count());
  reverter_ = std::make_unique<Reverter>(kvm_, *machine_, *tree_, *store_, *persistent_, handover_);
  snapshotter_ =
      std::make_unique<Snapshotter>(*machine_, ram_origin, *tree_, *store_,
                                    SnapshotIdentity{.vm_name = name_, .host = host_identity(kvm_)},
                                    disks_at_start_, *persistent_, handover_, loop_);
  return {};
}

}  // namespace vmm
