// The same requests to a model, to our disk and to QEMU's, and the two images swapped on the way.
//
// A scenario is an image of some shape and a copy of it. In each round ours writes one file and
// QEMU the other; then both are closed, ours must check clean, QEMU must read ours and we QEMU's,
// and both must be what the model says. Now and then the files change hands, so that either goes on
// with what the other left, and both are resized.
//
// Thread: one.

#pragma once

#include <random>
#include <string>
#include <vector>

#include "tests/blockdev/support/durable_image.h"
#include "tests/blockdev/support/image_states.h"
#include "tests/blockdev/support/random_requests.h"

namespace blockdev::test {

struct DifferentialCounts {
  u64 scenarios = 0;
  u64 requests = 0;
  u64 reopenings = 0;
  u64 swaps = 0;
  u64 resizes = 0;
  u64 qemu_checks = 0;
  ReachedStates reached;
  std::vector<std::string> violations;
};

// A shape that `seed` chooses among all cluster sizes, entries, refcount widths and chains.
ImageShape random_shape(u64 seed);

class Differential final {
 public:
  Differential(const std::string& directory, QemuDaemon& daemon, DifferentialCounts& counts)
      : directory_(directory), daemon_(daemon), counts_(counts) {}

  // One scenario. Stops at the first violation.
  void run(const ImageShape& shape, u64 seed, u32 rounds, u32 requests_each);

 private:
  struct Round;

  void play_round(Round& round);
  void mirror(Round& round, const ModelClient::Request& request, Stamp stamp);
  void mirror_discard(Round& round, const ModelClient::Request& request);
  void count_states(Round& round, const ModelClient::Request& request);
  void compare(Round& round);
  void resize(Round& round);
  void violated(const Round& round, const std::string& what);

  std::string directory_;
  QemuDaemon& daemon_;
  DifferentialCounts& counts_;
};

}  // namespace blockdev::test
