// RevertRig: our VM and the peer's, equal, measured by turns.
//
// Thread: one.

#pragma once

#include <memory>

#include "vmm/bench/bench_vm.h"
#include "vmm/bench/plan.h"
#include "vmm/bench/samples.h"

namespace bench {

struct RevertSeries {
  Samples client;
  Samples own;
  Samples peer;  // empty without one
  double ratio() const { return peer.empty() ? 0 : peer.median() / client.median(); }
};

enum class PeerChoice : u8 { alone, beside };

class RevertRig final {
 public:
  // Both boot, map their pages and take the snapshot.
  static Result<RevertRig> start(const Plan& plan, const BenchVmSpec& spec, PeerChoice choice);

  // `peer_count` of the peer's, spread evenly over `count` of ours.
  Result<RevertSeries> measure(u64 dirty_pages, u32 count, u32 peer_count);
  BenchVm& ours() { return *ours_; }

 private:
  RevertRig(std::unique_ptr<BenchVm> ours, std::unique_ptr<BenchVm> peer)
      : ours_(std::move(ours)), peer_(std::move(peer)) {}

  std::unique_ptr<BenchVm> ours_;
  std::unique_ptr<BenchVm> peer_;  // paused while ours is measured, and the other way round
};

}  // namespace bench
