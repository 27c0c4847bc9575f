// QemuVm: the peer: QEMU's microvm with the same guest on the same KVM, its snapshots inside a qcow2
// disk, as `savevm` and `loadvm` want it.

#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "vmm/bench/bench_vm.h"
#include "vmm/bench/workspace.h"

namespace bench {

// The machine without what the guest does not need: what it does not have, it neither saves nor
// starts. `-cpu qemu64`, because `max` dies on KVM-PVM.
std::vector<std::string> qemu_words(const std::string& kernel, u64 memory_mib);

class QemuVm final : public BenchVm {
 public:
  // "QEMU emulator version 7.2.22", or nothing if there is no QEMU to start.
  static std::optional<std::string> version(const Workspace& workspace);

  // Boots the guest and takes the snapshot, inside the disk at disk_path(workspace, name).
  static Result<std::unique_ptr<QemuVm>> start(const Workspace& workspace, const std::string& name,
                                               const BenchVmSpec& spec);
  static std::string disk_path(const Workspace& workspace, const std::string& name) {
    return workspace.file(name + ".qcow2");
  }
  static std::vector<std::string> disk_words(const Workspace& workspace, const std::string& name);

  GuestLine& guest() override { return guest_; }
  pid_t pid() const override { return child_.pid(); }
  Result<void> snapshot() override;
  Result<RevertTime> revert() override;
  Result<void> pause() override { return execute(R"({"execute":"stop"})"); }
  Result<void> resume() override { return execute(R"({"execute":"cont"})"); }

 private:
  QemuVm(Child child, base::Fd monitor, GuestLine guest)
      : child_(std::move(child)), monitor_(std::move(monitor)), guest_(std::move(guest)) {}
  Result<void> send(std::string_view request);
  // Up to the answer of the last request; events in between are passed over.
  Result<void> receive();
  Result<void> execute(std::string_view request);

  Child child_;
  base::Fd monitor_;
  GuestLine guest_;
  std::string received_;
};

}  // namespace bench
