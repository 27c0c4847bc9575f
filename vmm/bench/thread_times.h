// ThreadTimes: what a thread has cost so far, as proc(5) counts it.

#pragma once

#include <sys/types.h>

#include <map>
#include <string>

#include "vmm/base/result.h"

namespace bench {

struct ThreadTimes {
  double user_us = 0;  // of a vCPU's thread: its guest too
  double system_us = 0;
  u64 sleeps = 0;  // how often it gave up its processor to wait

  ThreadTimes& operator+=(const ThreadTimes& other);
  ThreadTimes operator-(const ThreadTimes& earlier) const;
};

// All threads of a process by their names; those of one name together.
using ThreadTimesByName = std::map<std::string, ThreadTimes>;
Result<ThreadTimesByName> thread_times_of(pid_t pid);

// The children of this process that it has waited for.
ThreadTimes times_of_ended_children();

}  // namespace bench
