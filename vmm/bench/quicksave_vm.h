// QuicksaveVm: this program's own VM, as a client of its sockets sees it.

#pragma once

#include <memory>

#include "vmm/bench/bench_vm.h"
#include "vmm/bench/workspace.h"
#include "vmm/control/api_client.h"

namespace bench {

inline constexpr char kThisProgram[] = "/proc/self/exe";
inline constexpr char kSnapshotName[] = "ready";

// A VM of this program in the workspace, and the connection to it once it listens.
control::VmDirectory vm_directory(const Workspace& workspace, const std::string& name);
Result<control::ApiClient> connect_to(const control::VmDirectory& directory, const Child& child);

class QuicksaveVm final : public BenchVm {
 public:
  // Boots the guest under `name` and takes the snapshot.
  static Result<std::unique_ptr<QuicksaveVm>> start(const Workspace& workspace,
                                                    const std::string& name,
                                                    const BenchVmSpec& spec);

  GuestLine& guest() override { return guest_; }
  pid_t pid() const override { return child_.pid(); }
  Result<void> snapshot() override;
  Result<RevertTime> revert() override;
  Result<void> pause() override;
  Result<void> resume() override;

 private:
  QuicksaveVm(Child child, control::ApiClient api, GuestLine guest)
      : child_(std::move(child)), api_(std::move(api)), guest_(std::move(guest)) {}

  Child child_;
  control::ApiClient api_;
  GuestLine guest_;
};

}  // namespace bench
