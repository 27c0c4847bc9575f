// Reverter: takes the live machine back to a snapshot, in its process.
//
// The order: stop everything; find what was written since (KVM's log, ours, and the edges of the
// tree on the way); copy those pages back, and beside that restore the processors; make KVM forget
// translations of what the pages held before; put each disk back on its layers; restore the devices;
// go on. Everything that can be refused
// is refused before the machine is touched: a state when its snapshot is taken or adopted, so that a
// revert has nothing left to look at. What fails after that leaves the machine halted, never
// half-restored.
//
// Thread: the control thread. Nothing on this path is proportional to memory but the scan of one
// bit for each page.

#pragma once

#include <optional>

#include "snapshot/pages.h"
#include "snapshot/store.h"
#include "snapshot/tree.h"
#include "vmm/control/vm_control.h"
#include "vmm/kvm/self_test.h"
#include "vmm/layer_handover.h"
#include "vmm/machine.h"
#include "vmm/persistent_disks.h"
#include "vmm/snapshot_mark.h"

namespace vmm {

// A revert that failed. `halted`: the machine was touched and must not run again.
struct RevertFailure {
  Error error;
  bool halted = false;
};

class Reverter final {
 public:
  // All outlive the reverter.
  Reverter(const kvm::Kvm& kvm, Machine& machine, snapshot::SnapshotTree& tree,
           const snapshot::SnapshotStore& store, PersistentDisks& persistent,
           LayerHandover& handover);

  // Finds out how this host's KVM wants to be told of rewritten memory. Once, before the first
  // revert; costs a few milliseconds.
  Result<void> learn_host();

  // Makes a snapshot of the store known to the tree: its memory mapped, its state decoded and
  // validated against this machine, its disks' images compared with `disks`: the user's images as
  // they are open here. Changes nothing in the machine. One that is known is found again.
  Result<snapshot::SnapshotNode*> adopt(std::shared_ptr<const snapshot::SnapshotObject> object,
                                        std::vector<DiskMark> disks);

  // Quiesces the machine if it runs; on success it is quiet and at the snapshot's T, not resumed.
  tl::expected<control::RevertResult, RevertFailure> revert(snapshot::SnapshotNode& target,
                                                            const control::RevertRequest& request,
                                                            bool running);

  // Puts states and timeline in place for a machine whose RAM and disks are the snapshot's already.
  Result<void> restore_states(const snapshot::SnapshotNode& node, control::ClockPolicy clock,
                              devices::TimelineChange change);

 private:
  Result<void> restore_memory_and_processors(const snapshot::SnapshotNode& target,
                                             control::RevertResult& result, class Phases& phases);
  // The pages that differed, as the tree has them.
  Result<const memory::PageSet*> restore_memory(const snapshot::SnapshotNode& target,
                                                control::RevertResult& result, Phases& phases);
  void copy_pages_back(const snapshot::SnapshotNode& target, const memory::PageSet& pages);
  Result<void> refresh_translations(const memory::PageSet& pages,
                                    const kvm::ProcessorsState& state);
  // False: all of KVM's shadow tables have to go.
  Result<bool> zap_rewritten_tables(const kvm::ProcessorsState& state);
  Result<void> restore_devices(const snapshot::SnapshotNode& node);
  // To the devices, of which some tell the guest.
  void announce(devices::TimelineChange change);
  Result<void> verify(const snapshot::SnapshotNode& node);

  const kvm::Kvm& kvm_;
  Machine& machine_;
  snapshot::SnapshotTree& tree_;
  const snapshot::SnapshotStore& store_;
  PersistentDisks& persistent_;
  LayerHandover& handover_;
  std::optional<kvm::StaleTranslations> stale_;
  memory::PageSet scratch_;
  // What copy_pages_back() found, where it matters: numbers of pages, then their addresses.
  std::vector<u64> rewritten_tables_;
};

}  // namespace vmm
