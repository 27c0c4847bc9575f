#include "vmm/bench/bench_vm.h"

namespace bench {

Result<RevertTime> revert_once(BenchVm& vm, u64 dirty_pages) {
  TRY(vm.guest().say(fmt::format("n{}\n", dirty_pages)));
  TRY(vm.guest().say("m"));
  TRY(vm.guest().say("d"));
  return vm.revert();
}

}  // namespace bench
