#include "vmm/live_vm.h"

#include <sys/utsname.h>

#include <nlohmann/json.hpp>

#include "blockdev/disk.h"
#include "snapshot/memory_file.h"
#include "vmm/base/check.h"
#include "vmm/base/log.h"
#include "vmm/kvm/cpuid.h"

namespace vmm {
namespace {

using control::VmState;

// The processor as CPUID leaf 0 and 1 describe it.
snapshot::HostIdentity host_identity(const kvm::Kvm& kvm) {
  snapshot::HostIdentity host{.kvm_kind = std::string(kvm.kind_name()),
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

snapshot::BaseImage to_base_image(const blockdev::ImageIdentity& identity) {
  return {.path = identity.path,
          .format = std::string(blockdev::image_format_name(identity.format)),
          .size_bytes = identity.size_bytes,
          .mtime_ns = identity.mtime_ns,
          .device = identity.device,
          .inode = identity.inode};
}

}  // namespace

Result<std::unique_ptr<LiveVm>> LiveVm::create(const kvm::Kvm& kvm,
                                               const control::LaunchRequest& request,
                                               control::Loop& loop) {
  auto vm = std::unique_ptr<LiveVm>(new LiveVm(kvm, request, loop));
  vm->console_ = TRY(control::ConsoleHub::create(
      loop, {.log_file = request.directory.console_log(),
             .socket_path = request.directory.console_socket(),
             .target = request.console}));
  vm->store_ = TRY(snapshot::SnapshotStore::open(vm->home_.snapshots(), vm->home_.vms()));
  if (request.boot) {
    TRY(vm->boot(*request.boot));
  } else {
    TRY(vm->restore(request));
  }
  Machine& machine = *vm->machine_;
  vm->console_->set_input(
      [&machine](std::span<const u8> bytes) { return machine.serial().receive(bytes); });
  vm->console_->set_leave([self = vm.get()] { self->kill(); });
  return vm;
}

LiveVm::LiveVm(const kvm::Kvm& kvm, const control::LaunchRequest& request, control::Loop& loop)
    : kvm_(kvm),
      loop_(loop),
      name_(request.directory.name),
      home_(request.directory.home),
      console_target_(request.console) {}

LiveVm::~LiveVm() {
  // The machine's threads write to the console until they are gone.
  snapshotter_.reset();
  reverter_.reset();
  tree_.reset();
  machine_.reset();
  console_->finish();
}

Result<void> LiveVm::boot(const control::MachineConfig& config) {
  Machine::Parts parts;
  parts.memory = TRY(memory::GuestMemory::create(config.memory_bytes));
  std::vector<DiskMark> disks;
  for (const std::string& argument : config.disks) {
    const blockdev::DiskSpec spec = TRY(blockdev::parse_disk_spec(argument));
    parts.disks.push_back(TRY_CONTEXT(
        blockdev::open_disk(spec, {.spill_directory = home_.vms() + "/" + name_}), "--disk"));
    const blockdev::Disk& disk = *parts.disks.back();
    for (const std::string& warning : disk.warnings) {
      base::log(base::LogLevel::warning, "{}", warning);
    }
    DiskMark mark;
    for (const blockdev::ImageIdentity& image : disk.images) {
      mark.bases.insert(mark.bases.begin(), to_base_image(image));
    }
    if (disk.overlay != nullptr) mark.images = disk.overlay->lower();
    disks.push_back(std::move(mark));
  }
  TRY(build(config, std::move(parts), snapshot::RamOrigin::zeros, std::move(disks)));
  return machine_->boot();
}

Result<void> LiveVm::restore(const control::LaunchRequest& request) {
  const snapshot::Uuid uuid = TRY(snapshot::Uuid::parse(*request.restore_uuid));
  const auto object =
      std::make_shared<const snapshot::SnapshotObject>(TRY(store_->open(uuid)));
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
  if (config.disks.size() != manifest.disks.size() || manifest.memory.empty()) {
    return make_error(ErrorKind::corrupt, "the manifest's disks or memory do not fit its machine");
  }
  Machine::Parts parts;
  const base::Fd memory_file =
      TRY(snapshot::open_memory_file(object->directory(), manifest.memory[0]));
  parts.memory = TRY(memory::GuestMemory::create_from_file(memory_file, config.memory_bytes));
  parts.dirty_logging = kvm::DirtyLogging::on;
  std::vector<DiskMark> disks;
  for (std::size_t i = 0; i < config.disks.size(); ++i) {
    const blockdev::DiskSpec spec = TRY(blockdev::parse_disk_spec(config.disks[i]));
    std::vector<std::string> layers;
    for (const snapshot::DiskLayer& layer : manifest.disks[i].layers) {
      layers.push_back(store_->layer_path(layer));
    }
    parts.disks.push_back(TRY(blockdev::open_disk_with_layers(
        spec, layers, {.spill_directory = home_.vms() + "/" + name_})));
    DiskMark mark{.bases = manifest.disks[i].bases, .images = {}, .layers = {}};
    if (blockdev::Overlay* const overlay = parts.disks.back()->overlay; overlay != nullptr) {
      mark.images = {overlay->lower().begin() + static_cast<std::ptrdiff_t>(layers.size()),
                     overlay->lower().end()};
    }
    disks.push_back(std::move(mark));
  }
  TRY(build(config, std::move(parts), snapshot::RamOrigin::file, disks));
  snapshot::SnapshotNode* const node = TRY(reverter_->adopt(object, std::move(disks)));
  for (std::size_t i = 0; i < machine_->disks().size(); ++i) {
    // The same layers by the same pointers, so that later snapshots know them.
    if (blockdev::Overlay* const overlay = machine_->disks()[i]->overlay; overlay != nullptr) {
      overlay->rebase_on(mark_of(*node).disks[i].lower());
    }
  }
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
  reverter_ = std::make_unique<Reverter>(kvm_, *machine_, *tree_, *store_);
  snapshotter_ = std::make_unique<Snapshotter>(
      *machine_, ram_origin, *tree_, *store_,
      SnapshotIdentity{.vm_name = name_, .host = host_identity(kvm_)}, disks_at_start_, loop_);
  return {};
}

void LiveVm::start() {
  CHECK(state_ == VmState::created);
  machine_->resume();
  state_ = VmState::running;
}

control::VmInfo LiveVm::info() {
  const snapshot::SnapshotNode* const current = tree_->current();
  return {.name = name_,
          .state = state_,
          .paused_because = paused_because_,
          .current_snapshot = current != nullptr ? current->name : "",
          .uptime_ms = since_start_.total_us() / 1000,
          .revert_count = revert_count_,
          .config = machine_->config()};
}

Result<void> LiveVm::pause() {
  if (state_ == VmState::paused) return {};
  if (state_ != VmState::running) return wrong_state("running");
  machine_->quiesce();
  snapshotter_->machine_is_quiet();
  state_ = VmState::paused;
  return {};
}

Result<void> LiveVm::resume() {
  if (state_ == VmState::running) return {};
  if (state_ != VmState::paused) return wrong_state("paused");
  paused_because_.clear();
  machine_->resume();
  state_ = VmState::running;
  return {};
}

Result<void> LiveVm::press_power_button() {
  if (state_ != VmState::running) return wrong_state("running");
  machine_->power().press_power_button();
  return {};
}

void LiveVm::kill() { end(state_ == VmState::halted ? exit_status_ : ExitStatus::killed); }

void LiveVm::create_snapshot(const control::SnapshotRequest& request,
                             std::function<void(const control::SnapshotResult&)> paused_done,
                             std::function<void(Result<control::SnapshotResult>)> durable) {
  if (state_ != VmState::running && state_ != VmState::paused) {
    return durable(wrong_state("running or paused"));
  }
  // Now, and not at the first revert: a revert is waited for.
  if (const Result<void> learnt = reverter_->learn_host(); !learnt) return durable(learnt.error());
  snapshotter_->create(request, state_ == VmState::running, std::move(paused_done),
                       std::move(durable));
}

Result<control::RevertResult> LiveVm::revert(const control::RevertRequest& request) {
  if (state_ == VmState::created) return wrong_state("running");
  snapshot::SnapshotNode* const target = TRY(find_snapshot(request.snapshot));
  auto result = reverter_->revert(*target, request, state_ == VmState::running);
  if (!result) {
    if (result.error().halted) halt(result.error().error.message(), ExitStatus::vmm_failed);
    return std::move(result.error().error)
        .with_context(fmt::format("revert {} to '{}'", name_, target->name));
  }
  ++timeline_;
  ++revert_count_;
  snapshotter_->machine_is_quiet();
  paused_because_.clear();
  exit_status_ = ExitStatus::powered_off;
  Stopwatch resume;
  machine_->resume();
  state_ = VmState::running;
  result->phases_us.emplace_back("resume", resume.total_us());
  result->total_us += resume.total_us();
  console_->mark_log(fmt::format("[reverted to {}]", target->name));
  return std::move(*result);
}

Result<snapshot::SnapshotNode*> LiveVm::find_snapshot(const std::string& name) {
  if (name.empty()) {
    if (tree_->current() == nullptr) {
      return make_error(ErrorKind::not_found, "{} has no snapshot to revert to", name_)
          .with_hint(fmt::format("quicksave snapshot create {} NAME", name_));
    }
    return tree_->current();
  }
  if (snapshot::SnapshotNode* const node = tree_->find(name); node != nullptr) return node;
  // One that another process of this VM took.
  const snapshot::Uuid uuid = TRY(store_->resolve(name_, name));
  auto object = std::make_shared<const snapshot::SnapshotObject>(TRY(store_->open(uuid)));
  const auto config = TRY(control::MachineConfig::from_json(object->manifest().machine));
  if (config != machine_->config()) {
    return make_error(ErrorKind::unsupported, "snapshot '{}' is of a machine built differently", name)
        .with_hint(fmt::format("quicksave restore {}@{}", name_, name));
  }
  return reverter_->adopt(std::move(object), disks_at_start_);
}

Result<void> LiveVm::reboot() {
  machine_->quiesce();
  ++timeline_;
  TRY(machine_->reset());
  TRY(machine_->boot());
  machine_->resume();
  return {};
}

void LiveVm::halt(std::string reason, ExitStatus status) {
  state_ = VmState::halted;
  paused_because_ = std::move(reason);
  exit_status_ = status;
  base::log(base::LogLevel::error, "{}: {}", name_, paused_because_);
  // Nobody can revert what runs in the foreground of a script that waits for its end.
  if (console_target_ == control::ConsoleTarget::stdio) return end(status);
  base::log_line(base::LogLevel::info,
                 fmt::format("hint: quicksave logs {0} shows what the guest wrote; then quicksave "
                             "revert {0}, or quicksave kill {0}",
                             name_));
}

void LiveVm::end(ExitStatus status) {
  exit_status_ = status;
  loop_.stop();
}

Error LiveVm::wrong_state(std::string_view wanted) const {
  Error error = make_error(ErrorKind::wrong_state, "{} is {}, not {}", name_,
                           control::name_of(state_), wanted);
  if (state_ == VmState::halted) {
    return std::move(error).with_hint(
        fmt::format("{}; quicksave revert {}, or quicksave kill {}", paused_because_, name_, name_));
  }
  return error;
}

void LiveVm::react_later(std::function<void()> react) {
  loop_.post([this, asked = timeline_.load(), react = std::move(react)] {
    if (asked == timeline_.load()) react();
  });
}

void LiveVm::guest_powered_off() {
  react_later([this] { end(ExitStatus::powered_off); });
}

void LiveVm::guest_asked_for_reboot() {
  react_later([this] {
    if (state_ != VmState::running) return;
    if (const Result<void> done = reboot(); !done) {
      halt("reboot: " + done.error().message(), ExitStatus::vmm_failed);
    }
  });
}

void LiveVm::guest_crashed(std::string reason) {
  react_later([this, reason = std::move(reason)] {
    if (state_ == VmState::running) machine_->quiesce();
    halt("the guest crashed: " + reason, ExitStatus::crashed);
  });
}

void LiveVm::vmm_failed(std::string reason) {
  react_later([this, reason = std::move(reason)] {
    if (state_ == VmState::running) machine_->quiesce();
    halt(reason, ExitStatus::vmm_failed);
  });
}

void LiveVm::disk_out_of_space(std::string disk) {
  react_later([this, disk = std::move(disk)] {
    if (state_ != VmState::running) return;
    machine_->quiesce();
    state_ = VmState::paused;
    paused_because_ = fmt::format("no space left on the host for {}", disk);
    base::log(base::LogLevel::warning, "{}: paused: {}; make room, then quicksave resume {}", name_,
              paused_because_, name_);
  });
}

}  // namespace vmm
