// Machine: owns every part of one virtual machine, and knows how they are put together, stopped and
// started. Taking snapshots and reverting stand above it (snapshotter.h, reverter.h).
//
//   built --boot() or a restore--> quiet --resume()--> running --quiesce()--> quiet
//
// Quiet: all vCPUs parked, all devices paused and drained; nothing changes RAM, registers, device
// state or the disks until resume().
//
// The order of the members is the order of construction; destruction is the reverse. Everyone else
// borrows from here.
//
// Thread: the control thread, except where the interfaces it implements say otherwise.

#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "blockdev/disk.h"
#include "devices/bus.h"
#include "devices/power.h"
#include "devices/serial.h"
#include "devices/virtio/mmio.h"
#include "vmm/boot/kernel.h"
#include "vmm/control/machine_config.h"
#include "vmm/kvm/page_zapper.h"
#include "vmm/kvm/processors.h"
#include "vmm/queue_thread.h"
#include "vmm/vcpu_thread.h"

namespace vmm {

// What the machine tells its owner. Thread: any; returns at once.
class MachineObserver {
 public:
  virtual ~MachineObserver() = default;
  virtual void guest_powered_off() = 0;
  virtual void guest_asked_for_reboot() = 0;
  // A vCPU cannot go on and has parked itself.
  virtual void guest_crashed(std::string reason) = 0;
  virtual void vmm_failed(std::string reason) = 0;
  virtual void disk_out_of_space(std::string disk) = 0;
};

// An interrupt line that ends at a pin of KVM's interrupt controllers.
class GsiLine final : public devices::IrqLine {
 public:
  GsiLine(kvm::Vm& vm, u32 gsi) : vm_(vm), gsi_(gsi) {}
  void set(devices::IrqLevel level) override {
    vm_.set_irq(gsi_,
                level == devices::IrqLevel::high ? kvm::LineLevel::high : kvm::LineLevel::low);
  }

 private:
  kvm::Vm& vm_;
  const u32 gsi_;
};

class Machine final : private devices::MachineEvents, private VcpuExitHandler {
 public:
  struct Parts {
    const kvm::Kvm* kvm = nullptr;  // outlives the machine, like `console` and `observer`
    std::unique_ptr<memory::GuestMemory> memory;
    std::vector<std::unique_ptr<blockdev::Disk>> disks;
    kvm::DirtyLogging dirty_logging = kvm::DirtyLogging::off;
    devices::SerialSink* console = nullptr;
    MachineObserver* observer = nullptr;
  };

  // A machine as just built: quiet, RAM as given, every device reset.
  static Result<std::unique_ptr<Machine>> create(const control::MachineConfig& config, Parts parts);
  // Ends all threads; works in any state.
  ~Machine() override;

  // Puts the kernel into RAM and the first vCPU at its entry. REQUIRES: as just built, or reset().
  Result<void> boot();
  // Refuses what boot() would refuse, and touches nothing.
  Result<void> check_boot() const;
  // As just built: RAM zero, devices and vCPUs reset; the disks keep their content, as they do when
  // a computer is reset. REQUIRES: quiet.
  Result<void> reset();

  // REQUIRES: quiet.
  void resume();
  // Does nothing if it is quiet.
  void quiesce();

  memory::GuestMemory& memory() { return *memory_; }
  kvm::Vm& vm() { return *vm_; }
  kvm::Processors& processors() { return *processors_; }
  devices::Serial& serial() { return *serial_; }
  devices::Power& power() { return *power_; }
  std::span<const std::unique_ptr<blockdev::Disk>> disks() const { return disks_; }
  const control::MachineConfig& config() const { return config_; }

  // Everything with State, in the order of restoring: the processors come before the devices,
  // because theirs starts with all interrupt lines low and the devices then raise what is due.
  std::span<base::Stateful* const> statefuls() const { return statefuls_; }
  std::span<devices::Device* const> devices() const { return devices_; }

  // All pages written since the last call, by the guest and by us. REQUIRES: quiet, logging on.
  Result<void> collect_dirty(memory::PageSet& pages);
  // Of the pages that collect_dirty() has found since forget_unwatched(): those that were written by
  // us, unseen by KVM, which watches the guest's page tables where it shadows them.
  const memory::PageSet& unwatched_pages() const { return unwatched_; }
  // REQUIRES: KVM has dropped all translations.
  void forget_unwatched() { unwatched_.reset(); }
  // Restores the processors on the first vCPU's thread: KVM is fastest there, and the caller has
  // time for something else. REQUIRES: quiet; `state` outlives finish_restoring_processors(), which
  // comes before any other call.
  void begin_restoring_processors(const kvm::ProcessorsState& state);
  Result<void> finish_restoring_processors();
  // Makes KVM forget its shadow of these pages (kvm::PageZapper); false if that did not work.
  // REQUIRES: quiet; the processors are in `state`.
  Result<bool> zap_pages(std::span<const u64> gpas, const kvm::ProcessorsState& state);
  // Refuses what restoring them would refuse. In the order of statefuls().
  Result<void> validate_states(std::span<const std::unique_ptr<base::SavedState>> states) const;
  // Forgets what the abandoned timeline asked for: work of the queues, an end of the guest.
  void forget_requests();
  // It powered off, asked for a reboot or crashed; the observer has been told, and what that leads
  // to is to follow. REQUIRES: quiet.
  bool guest_has_ended() const { return guest_has_ended_.load(); }

 private:
  explicit Machine(const control::MachineConfig& config) : config_(config) {}
  Result<void> build(Parts parts);
  boot::BootConfig boot_config() const;
  Result<void> add_platform_devices(devices::SerialSink& console);
  Result<void> add_virtio_device(u32 slot, std::string thread_name, u32 queue_count,
                                 devices::QueueKicker& kicker,
                                 std::unique_ptr<devices::virtio::DeviceType> type);
  Result<void> add_disks();
  void list_parts();

  void power_off_requested() override;
  void reboot_requested() override;
  void out_of_space(std::string_view disk_name) override;
  void serve_port(const kvm::PortExit& exit) override;
  void serve_mmio(const kvm::MmioExit& exit) override;
  void vcpu_stopped(u32 vcpu_index, const kvm::VcpuExit& exit) override;
  void vcpu_failed(u32 vcpu_index, const Error& error) override;

  GsiLine& line(u32 gsi);
  // The private bases, for std::make_unique.
  devices::MachineEvents& events() { return *this; }
  VcpuExitHandler& exit_handler() { return *this; }

  const control::MachineConfig config_;
  MachineObserver* observer_ = nullptr;
  std::unique_ptr<memory::GuestMemory> memory_;
  std::unique_ptr<kvm::Vm> vm_;
  std::unique_ptr<kvm::Processors> processors_;
  kvm::ProcessorsState processors_at_reset_;
  std::optional<kvm::PageZapper> zapper_;  // where it works
  Result<void> processors_restored_;
  std::vector<std::unique_ptr<GsiLine>> lines_;
  std::vector<std::unique_ptr<blockdev::Disk>> disks_;
  std::vector<std::unique_ptr<QueueKicks>> kicks_;
  std::unique_ptr<devices::Serial> serial_;
  std::unique_ptr<devices::Power> power_;
  std::vector<std::unique_ptr<devices::virtio::MmioDevice>> virtio_devices_;
  devices::Bus ports_;
  devices::Bus mmio_;
  std::vector<base::Stateful*> statefuls_;
  std::vector<devices::Device*> devices_;
  u16 virtio_slots_present_ = 0;
  bool running_ = false;
  std::atomic<bool> guest_has_ended_ = false;
  // RAM was replaced as a whole since the last collect_dirty().
  bool all_pages_dirty_ = false;
  memory::PageSet unwatched_{0};
  memory::PageSet written_by_us_{0};  // collect_dirty's alone: it allocates nothing
  std::vector<std::unique_ptr<QueueThread>> queue_threads_;
  std::vector<std::unique_ptr<VcpuThread>> vcpu_threads_;
};

}  // namespace vmm
