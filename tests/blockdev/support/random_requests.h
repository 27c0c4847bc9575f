// RandomRequests: requests at the places where images go wrong: the boundaries of clusters and
// tables, a sector next to them, the ends of the disk, and a few clusters again and again.
//
// Thread: one.

#pragma once

#include <random>

#include "tests/blockdev/support/model_client.h"

namespace blockdev::test {

// In percent; what is left to 100 is reads.
struct RequestMix {
  u32 writes = 40;
  u32 zeroes = 12;
  u32 discards = 12;
  u32 flushes = 6;
};

class RandomRequests final {
 public:
  // `unit_bytes`: of a cluster; `subunit_bytes`: of a subcluster or the same.
  RandomRequests(u64 seed, u64 sector_count, u64 unit_bytes, u64 subunit_bytes, RequestMix mix)
      : random_(seed),
        sectors_(sector_count),
        unit_(unit_bytes / kSectorBytes),
        subunit_(subunit_bytes / kSectorBytes),
        mix_(mix) {}

  ModelClient::Request next();
  void set_sector_count(u64 count) { sectors_ = count; }
  // The longest request, in sectors; 0: four clusters.
  void set_limit(u64 sectors) { limit_ = sectors; }
  std::mt19937_64& random() { return random_; }

 private:
  u64 below(u64 bound) { return random_() % bound; }
  void choose_range(ModelClient::Request& request);

  std::mt19937_64 random_;
  u64 sectors_;
  u64 unit_;
  u64 subunit_;
  RequestMix mix_;
  u64 limit_ = 0;
};

}  // namespace blockdev::test
