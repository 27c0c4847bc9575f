#include "vmm/bench/revert_rig.h"

#include "vmm/bench/qemu_vm.h"
#include "vmm/bench/quicksave_vm.h"

namespace bench {
namespace {

// The first reverts find cold caches and page tables that nobody made yet; so does the peer's.
constexpr u32 kWarmUps = 3;

// Every VM of one benchmark has a name of its own.
std::string next_name() {
  static u32 count = 0;
  return fmt::format("bench{}", ++count);
}

}  // namespace

Result<RevertRig> RevertRig::start(const Plan& plan, const BenchVmSpec& spec, PeerChoice choice) {
  const std::string name = next_name();
  std::unique_ptr<BenchVm> peer;
  if (choice == PeerChoice::beside && plan.peer) {
    peer = TRY(QemuVm::start(plan.workspace, name, spec));
    for (u32 i = 0; i < kWarmUps; ++i) TRY(revert_once(*peer, 1));
    TRY(peer->pause());
  }
  std::unique_ptr<BenchVm> ours = TRY(QuicksaveVm::start(plan.workspace, name, spec));
  for (u32 i = 0; i < kWarmUps; ++i) TRY(revert_once(*ours, 1));
  return RevertRig(std::move(ours), std::move(peer));
}

Result<RevertSeries> RevertRig::measure(u64 dirty_pages, u32 count, u32 peer_count) {
  RevertSeries series;
  for (u32 i = 0; i < count; ++i) {
    const RevertTime time = TRY(revert_once(*ours_, dirty_pages));
    series.client.add(time.client_us);
    series.own.add(time.own_us);
    // Due when i * peer_count / count steps.
    const bool is_due = u64{i + 1} * peer_count / count != u64{i} * peer_count / count;
    if (peer_ == nullptr || !is_due) continue;
    TRY(ours_->pause());
    TRY(peer_->resume());
    series.peer.add(TRY(revert_once(*peer_, dirty_pages)).client_us);
    TRY(peer_->pause());
    TRY(ours_->resume());
  }
  return series;
}

}  // namespace bench
