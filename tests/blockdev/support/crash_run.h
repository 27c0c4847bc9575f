// A recorded run of random requests on a durable disk, and the judgement of every crash in it.

#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "tests/blockdev/support/crash_replay.h"
#include "tests/blockdev/support/durable_image.h"
#include "tests/blockdev/support/random_requests.h"

namespace blockdev::test {

struct CrashPlan {
  const char* name = "";  // of the plan
  ImageShape shape = {};
  u64 seed = 1;
  u32 requests = 60;
  u32 depth = 3;  // requests in flight
  RequestMix mix{.writes = 55, .zeroes = 10, .discards = 12, .flushes = 12};
  u64 request_sectors = 0;  // the longest; 0: four clusters
  u32 grows = 0;            // the disk doubles so many times on the way
  CrashOptions crash = {};
  u32 qemu_share = 1;  // of so many different images one goes to qemu-img check; 0: none
  // What the disk gets in place of the engines that record; tests put liars between.
  std::function<EngineMaker(EngineMaker)> wrap_engines = nullptr;
};

// For the names of parameterised tests.
inline void PrintTo(const CrashPlan& plan, std::ostream* out) { *out << plan.name; }

struct CrashOutcome {
  CrashCounts counts;
  u64 by_qemu = 0;
  u64 operations = 0;  // that wrote, synced, punched or truncated
  bool l1_table_grew = false;
  bool refcount_table_grew = false;
  std::vector<std::string> violations;  // at most a few
};

// `directory` is used and left with the image in it.
CrashOutcome run_crash_plan(const CrashPlan& plan, const std::string& directory,
                            QemuDaemon& daemon);

}  // namespace blockdev::test
