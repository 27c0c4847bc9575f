#include "vmm/live_vm.h"

#include <nlohmann/json.hpp>

#include "vmm/base/check.h"
#include "vmm/base/log.h"
#include "vmm/base/planted_fault.h"

namespace vmm {

using control::VmState;

Result<std::unique_ptr<LiveVm>> LiveVm::create(const kvm::Kvm& kvm,
                                               const control::LaunchRequest& request,
                                               control::Loop& loop) {
  auto vm = std::unique_ptr<LiveVm>(new LiveVm(kvm, request, loop));
  vm->console_ =
      TRY(control::ConsoleHub::create(loop, {.log_file = request.directory.console_log(),
                                             .socket_path = request.directory.console_socket(),
                                             .target = request.console}));
  vm->store_ = TRY(snapshot::SnapshotStore::open(vm->home_.snapshots(), vm->home_.vms()));
  vm->persistent_ = std::make_unique<PersistentDisks>(request.directory.path());
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
  persistent_.reset();
  machine_.reset();
  if (console_) (void)console_->finish();
}

void LiveVm::start() {
  CHECK(state_ == VmState::created);
  machine_->resume();
  state_ = VmState::running;
}

void LiveVm::finish() {
  // First: the writing may take long. Flushes that wait for it end as not begun.
  machine_->quiesce();
  snapshotter_->finish();
  if (const Result<void> closed = persistent_->close(); !closed) {
    base::log(base::LogLevel::error, "{}: {}", name_, closed.error().message());
    exit_status_ = ExitStatus::vmm_failed;
  }
  if (const Result<void> written = console_->finish(); !written) {
    base::log(base::LogLevel::error, "{}: {}", name_, written.error().message());
    if (exit_status_ == ExitStatus::powered_off) exit_status_ = ExitStatus::vmm_failed;
  }
  for (const std::string& head : persistent_->describe_heads()) {
    base::log(base::LogLevel::info, "{}", head);
  }
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
  handover_.carry_out(*machine_);
  state_ = VmState::paused;
  return {};
}

Result<void> LiveVm::resume() {
  if (state_ == VmState::running) return {};
  if (state_ != VmState::paused) return wrong_state("paused");
  paused_because_.clear();
  persistent_->try_again();
  machine_->processors().forgive_pause();
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
  paused_because_.clear();
  exit_status_ = ExitStatus::powered_off;
  Stopwatch resume;
  // Before the guest's first byte, so that it stands in front of it.
  console_->mark_log(fmt::format("[reverted to {}]", target->name));
  machine_->resume();
  state_ = VmState::running;
  result->phases_us.emplace_back("resume", resume.total_us());
  result->total_us += resume.total_us();
  // On the loop's thread, which alone hands on input: the guest has seen none of it yet.
  console_->drop_waiting_input();
  return std::move(*result);
}

Result<void> LiveVm::delete_snapshot(const std::string& name) {
  // It flushes files that settle() below would wait for.
  if (snapshotter_->is_busy()) {
    return make_error(ErrorKind::busy, "a snapshot of {} is still being written", name_)
        .with_hint("try again when it is listed");
  }
  const snapshot::Uuid uuid = TRY(store_->resolve(name_, name));
  const snapshot::SnapshotNode* const node = tree_->find(uuid);
  if (node == nullptr) return store_->remove(name_, name);
  TRY(tree_->check_may_remove(uuid));
  // The record may still name what a revert has just left. If it cannot be written, that is in the
  // log, and the store refuses what it names.
  const Result<void> settled = persistent_->settle();
  SnapshotMark& mark = mark_of(*node);
  mark.object = nullptr;  // and with it the lock
  const Result<void> removed = store_->remove(name_, name);
  persistent_->try_again();  // now there may be room for what could not be settled
  if (!removed) {
    // Others need it, so it can still be reverted to.
    Result<snapshot::SnapshotObject> again = store_->open(uuid);
    if (again) {
      mark.object = std::make_shared<const snapshot::SnapshotObject>(std::move(*again));
      return removed;
    }
  }
  TRY(tree_->remove(uuid));
  return removed;
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
    return make_error(ErrorKind::unsupported, "snapshot '{}' is of a machine built differently",
                      name)
        .with_hint(fmt::format("quicksave restore {}@{}", name_, name));
  }
  return reverter_->adopt(std::move(object), disks_at_start_);
}

// A machine that was paused before it could be reset stays paused.
Result<void> LiveVm::reboot() {
  machine_->quiesce();
  ++timeline_;
  // A kernel that has gone or changed meanwhile must not cost what the guest has in memory.
  TRY(machine_->check_boot());
  TRY(machine_->reset());
  TRY(machine_->boot());
  if (state_ == VmState::running) machine_->resume();
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
    return std::move(error).with_hint(fmt::format("{}; quicksave revert {}, or quicksave kill {}",
                                                  paused_because_, name_, name_));
  }
  return error;
}

void LiveVm::react_later(std::function<void()> react) {
  if (base::planted("reactions")) return;
  loop_.post([this, asked = timeline_.load(), react = std::move(react)] {
    if (asked == timeline_.load()) react();
  });
}

void LiveVm::guest_powered_off() {
  react_later([this] { end(ExitStatus::powered_off); });
}

void LiveVm::guest_asked_for_reboot() {
  react_later([this] {
    if (state_ == VmState::halted) return;
    if (const Result<void> done = reboot(); !done) {
      halt("reboot: " + done.error().message(), ExitStatus::vmm_failed);
    }
  });
}

void LiveVm::guest_crashed(std::string reason) {
  react_later([this, reason = std::move(reason)] {
    if (state_ == VmState::halted) return;  // several vCPUs crash at once
    machine_->quiesce();
    halt("the guest crashed: " + reason, ExitStatus::crashed);
  });
}

void LiveVm::vmm_failed(std::string reason) {
  react_later([this, reason = std::move(reason)] {
    if (state_ == VmState::halted) return;
    machine_->quiesce();
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
