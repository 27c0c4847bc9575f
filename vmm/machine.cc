#include "vmm/machine.h"

#include <algorithm>

#include "devices/virtio/block.h"
#include "devices/virtio/rng.h"
#include "vmm/base/check.h"
#include "vmm/base/log.h"
#include "vmm/base/planted_fault.h"
#include "vmm/boot/layout.h"

namespace vmm {
namespace {

static_assert(devices::Power::kResetValue == boot::kResetValue);
static_assert(devices::Power::kSleepTypeOff == boot::kSleepTypeSoftOff);
static_assert(u32{devices::Power::kPowerButton} == boot::kEventPowerButton);
static_assert(u32{devices::Power::kGenerationChanged} == boot::kEventGenerationId);

// Slots are an ABI (a guest keeps its devices' addresses in RAM): disks from 0 on, the entropy device
// in the last one; those between are for network, vsock and their like.
constexpr u32 kRngSlot = boot::kVirtioSlotCount - 1;
static_assert(control::kMaximumDisks < kRngSlot);

// More queues than this cost threads and memory and gain nothing on disks that share one file.
constexpr u32 kMaximumDiskQueues = 4;

constexpr u16 kKeyboardControllerPort = 0x64;

kvm_segment to_kvm(const boot::Segment& segment) {
  kvm_segment result{};
  result.base = segment.base;
  result.limit = segment.limit;
  result.selector = segment.selector;
  result.type = segment.type;
  result.present = 1;
  result.s = segment.code_or_data ? 1 : 0;
  result.db = segment.operand_32 ? 1 : 0;
  result.l = segment.long_mode ? 1 : 0;
  result.g = segment.granular_4k ? 1 : 0;
  return result;
}

Result<void> start_at(kvm::Vcpu& vcpu, const boot::StartRegisters& start) {
  kvm_sregs special = TRY(vcpu.special_registers());
  special.cs = to_kvm(start.code);
  special.ds = special.es = special.fs = special.gs = special.ss = to_kvm(start.data);
  special.tr = to_kvm(start.task);
  special.gdt.base = start.gdt_base;
  special.gdt.limit = start.gdt_limit;
  special.cr0 = start.cr0;
  special.cr3 = start.cr3;
  special.cr4 = start.cr4;
  special.efer = start.efer;
  TRY(vcpu.set_special_registers(special));
  kvm_regs registers{};
  registers.rip = start.rip;
  registers.rsp = start.rsp;
  registers.rsi = start.rsi;
  registers.rbx = start.rbx;
  registers.rflags = start.rflags;
  return vcpu.set_registers(registers);
}

}  // namespace

Result<std::unique_ptr<Machine>> Machine::create(const control::MachineConfig& config,
                                                 Parts parts) {
  auto machine = std::unique_ptr<Machine>(new Machine(config));
  TRY(machine->build(std::move(parts)));
  return machine;
}

Result<void> Machine::build(Parts parts) {
  observer_ = parts.observer;
  memory_ = std::move(parts.memory);
  unwatched_ = memory::PageSet(memory_->page_count());
  written_by_us_ = memory::PageSet(memory_->page_count());
  disks_ = std::move(parts.disks);
  vm_ = TRY(kvm::Vm::create(*parts.kvm, *memory_, parts.dirty_logging));
  if (kvm::PageZapper::works_on(parts.kvm->kind())) zapper_.emplace(*vm_);
  processors_ = TRY(kvm::Processors::create(*parts.kvm, *vm_, config_.cpus));
  processors_at_reset_ = TRY(processors_->try_save());
  for (u32 gsi = 0; gsi < kvm::kGsiCount; ++gsi) {
    lines_.push_back(std::make_unique<GsiLine>(*vm_, gsi));
  }
  TRY(add_platform_devices(*parts.console));
  TRY(add_disks());
  auto kicks = TRY(QueueKicks::create(1));
  devices::QueueKicker& kicker = *kicks;
  kicks_.push_back(std::move(kicks));
  TRY(add_virtio_device(kRngSlot, "rng", 1, kicker,
                        std::make_unique<devices::virtio::Rng>(*memory_)));
  list_parts();
  const Waiting waiting = config_.cpus < std::thread::hardware_concurrency()
                              ? Waiting::awake_at_first
                              : Waiting::asleep;
  for (u32 i = 0; i < processors_->vcpu_count(); ++i) {
    vcpu_threads_.push_back(
        std::make_unique<VcpuThread>(processors_->vcpu(i), exit_handler(), waiting));
  }
  return {};
}

Machine::~Machine() { quiesce(); }

Result<void> Machine::add_platform_devices(devices::SerialSink& console) {
  serial_ = std::make_unique<devices::Serial>(line(boot::kSerialGsi), console);
  ports_.add(boot::kSerialPort, boot::kSerialPortCount, *serial_);
  power_ = std::make_unique<devices::Power>(line(boot::kEventGsi), events(), *memory_,
                                            Gpa{boot::kGenerationIdAddress});
  ports_.add(boot::kResetPort, 1, power_->reset_register());
  ports_.add(boot::kSleepControlPort, 2, power_->sleep_registers());
  ports_.add(boot::kEventPort, 4, power_->event_register());
  ports_.add(kKeyboardControllerPort, 1, power_->keyboard_controller());
  return {};
}

Result<void> Machine::add_disks() {
  const u32 queue_count = std::min(config_.cpus, kMaximumDiskQueues);
  for (u32 i = 0; i < disks_.size(); ++i) {
    auto kicks = TRY(QueueKicks::create(queue_count));
    devices::QueueKicker& kicker = *kicks;
    kicks_.push_back(std::move(kicks));
    const std::string name = fmt::format("disk{}", i);
    auto block = TRY_CONTEXT(devices::virtio::Block::create(
                                 *memory_, *disks_[i]->backend, events(),
                                 {.name = name,
                                  .serial = name,
                                  .queue_count = queue_count,
                                  .on_no_space = config_.on_enospc == control::NoSpacePolicy::pause
                                                     ? devices::virtio::OnNoSpace::pause
                                                     : devices::virtio::OnNoSpace::error}),
                             name);
    TRY(add_virtio_device(i, name, queue_count, kicker, std::move(block)));
  }
  return {};
}

// REQUIRES: `kicker` is the last of kicks_.
Result<void> Machine::add_virtio_device(u32 slot, std::string thread_name, u32 queue_count,
                                        devices::QueueKicker& kicker,
                                        std::unique_ptr<devices::virtio::DeviceType> type) {
  using devices::virtio::MmioDevice;
  virtio_devices_.push_back(std::make_unique<MmioDevice>(
      slot, *memory_, line(boot::kVirtioSlotGsi[slot]), kicker, std::move(type)));
  MmioDevice& device = *virtio_devices_.back();
  const u64 address = boot::virtio_slot_address(slot);
  mmio_.add(address, MmioDevice::kWindowBytes, device);
  virtio_slots_present_ = static_cast<u16>(virtio_slots_present_ | 1u << slot);
  for (u32 queue = 0; queue < queue_count; ++queue) {
    const base::EventFd& kick = kicks_.back()->event(queue);
    TRY(vm_->add_ioeventfd(Gpa{address + MmioDevice::kNotifyOffset}, queue, kick.fd()));
    queue_threads_.push_back(TRY(QueueThread::start(*device.workers()[queue], kick,
                                                    fmt::format("{}.{}", thread_name, queue))));
  }
  return {};
}

void Machine::list_parts() {
  devices_ = {power_.get(), serial_.get()};
  for (const auto& device : virtio_devices_) devices_.push_back(device.get());
  statefuls_ = {processors_.get()};
  for (devices::Device* device : devices_) {
    statefuls_.push_back(&device->stateful());
    device->pause();
  }
}

boot::BootConfig Machine::boot_config() const {
  return {.kernel_path = config_.kernel,
          .initrd_path = config_.initrd,
          .command_line = config_.append,
          .vcpu_count = config_.cpus,
          .virtio_slots_present = virtio_slots_present_};
}

Result<void> Machine::boot() {
  const boot::StartRegisters start = TRY(boot::load_kernel(*memory_, boot_config()));
  return start_at(processors_->vcpu(0), start);
}

Result<void> Machine::check_boot() const {
  const auto elsewhere = TRY(memory::GuestMemory::create(memory_->size_bytes()));
  TRY(boot::load_kernel(*elsewhere, boot_config()));
  return {};
}

Result<void> Machine::reset() {
  TRY(memory_->reset());
  // Page tables of the kernel that ran are gone, and KVM has not seen it.
  TRY(vm_->invalidate_translations(kvm::StaleTranslations::shadow_tables));
  all_pages_dirty_ = true;
  for (devices::Device* device : devices_) device->reset();
  forget_requests();
  // What the guest has seen once it sees on: after a restore that may be less than this host has.
  processors_at_reset_.cpuid.assign(processors_->cpuid().begin(), processors_->cpuid().end());
  return processors_->restore(processors_at_reset_);
}

void Machine::resume() {
  CHECK(!running_);
  running_ = true;
  for (devices::Device* device : devices_) device->resume();
  for (const auto& thread : vcpu_threads_) thread->resume();
}

void Machine::quiesce() {
  if (!std::exchange(running_, false)) return;
  for (const auto& thread : vcpu_threads_) thread->request_park();
  for (const auto& thread : vcpu_threads_) thread->wait_parked();
  for (devices::Device* device : devices_) device->pause();
  for (devices::Device* device : devices_) device->drain();
}

Result<void> Machine::collect_dirty(memory::PageSet& pages) {
  TRY(vm_->collect_dirty(pages));
  written_by_us_.reset();
  memory_->dirty_log().collect(written_by_us_);
  if (std::exchange(all_pages_dirty_, false)) written_by_us_.insert_all();
  unwatched_.unite(written_by_us_);
  pages.unite(written_by_us_);
  return {};
}

Result<void> Machine::validate_states(
    std::span<const std::unique_ptr<base::SavedState>> states) const {
  CHECK(states.size() == statefuls_.size());
  for (std::size_t i = 0; i < states.size(); ++i) {
    if (base::planted("invalid-state")) return make_error(ErrorKind::corrupt, "planted");
    TRY_CONTEXT(statefuls_[i]->validate_state(*states[i]),
                fmt::format("state of {}", statefuls_[i]->state_name()));
  }
  return {};
}

void Machine::begin_restoring_processors(const kvm::ProcessorsState& state) {
  vcpu_threads_[0]->begin([this, &state] { processors_restored_ = processors_->restore(state); });
}

Result<void> Machine::finish_restoring_processors() {
  vcpu_threads_[0]->wait_parked();
  return processors_restored_;
}

Result<bool> Machine::zap_pages(std::span<const u64> gpas, const kvm::ProcessorsState& state) {
  if (!zapper_) return false;
  Result<void> zapped, restored;
  vcpu_threads_[0]->begin([&] {
    zapped = zapper_->zap(processors_->vcpu(0), state.vcpus[0], gpas);
    restored = processors_->restore_run_state(state, 0);
  });
  vcpu_threads_[0]->wait_parked();
  TRY(restored);
  if (zapped) return true;
  base::log(base::LogLevel::warning, "{}; from now on all translations are dropped",
            zapped.error().message());
  zapper_.reset();
  return false;
}

void Machine::forget_requests() {
  guest_has_ended_ = false;
  for (const auto& kicks : kicks_) {
    for (u32 queue = 0; queue < kicks->queue_count(); ++queue) kicks->event(queue).take();
  }
}

// Once: a guest may go on asking for as long as the owner is busy, and each time would cost memory.
void Machine::power_off_requested() {
  if (guest_has_ended_.exchange(true)) return;
  observer_->guest_powered_off();
}

void Machine::reboot_requested() {
  if (guest_has_ended_.exchange(true)) return;
  observer_->guest_asked_for_reboot();
}

void Machine::out_of_space(std::string_view disk_name) {
  observer_->disk_out_of_space(std::string(disk_name));
}

void Machine::serve_port(const kvm::PortExit& exit) {
  // INS and OUTS: the same port again and again.
  for (u32 i = 0; i < exit.count; ++i) {
    const std::span<u8> data = exit.data.subspan(u64{i} * exit.size, exit.size);
    if (exit.direction == kvm::Direction::in) {
      ports_.read(exit.port, data);
    } else {
      ports_.write(exit.port, data);
    }
  }
}

void Machine::serve_mmio(const kvm::MmioExit& exit) {
  if (exit.direction == kvm::Direction::in) {
    mmio_.read(exit.gpa.value, exit.data);
  } else {
    mmio_.write(exit.gpa.value, exit.data);
  }
}

void Machine::vcpu_stopped(u32 vcpu_index, const kvm::VcpuExit& exit) {
  guest_has_ended_ = true;
  // The one stop that may be the host's fault: KVM without hardware emulates only part of the set.
  const bool blames_kvm = std::holds_alternative<kvm::InternalErrorExit>(exit);
  observer_->guest_crashed(
      fmt::format("vCPU {}: {}{}", vcpu_index, kvm::describe(exit),
                  blames_kvm ? "; quicksave doctor tells what this host's KVM cannot run" : ""));
}

void Machine::vcpu_failed(u32 vcpu_index, const Error& error) {
  guest_has_ended_ = true;
  observer_->vmm_failed(fmt::format("vCPU {}: {}", vcpu_index, error.message()));
}

GsiLine& Machine::line(u32 gsi) { return *lines_[gsi]; }

}  // namespace vmm
