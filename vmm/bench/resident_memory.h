// Resident memory of a VM's process that is not the guest's: what the VMM itself costs.

#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

#include "vmm/base/result.h"

namespace bench {

struct ResidentMemory {
  u64 own_bytes = 0;    // Rss of all other mappings, shared pages of the program's file included
  u64 guest_bytes = 0;  // Rss of RAM and of snapshots' images of it
};

// From the text of /proc/PID/smaps. A mapping is RAM or an image of RAM if it is at least half as
// large as RAM, or if its file lies below `snapshots`.
ResidentMemory resident_memory(std::string_view smaps, u64 ram_bytes, std::string_view snapshots);

// REQUIRES: a VM without disks; an overlay's arena would count as the VMM's.
Result<ResidentMemory> resident_memory_of(pid_t pid, u64 ram_bytes, const std::string& snapshots);

}  // namespace bench
