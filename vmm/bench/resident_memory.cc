#include "vmm/bench/resident_memory.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "vmm/bench/plan.h"
#include "vmm/bench/revert_rig.h"

namespace bench {
namespace {

// proc(5): a mapping's lines begin with "START-END PERMISSIONS ..." in hexadecimal.
bool is_heading(const std::string& line, u64& mapping_bytes) {
  unsigned long start = 0;
  unsigned long end = 0;
  if (std::sscanf(line.c_str(), "%lx-%lx ", &start, &end) != 2) return false;
  mapping_bytes = end - start;
  return true;
}

std::string mib_text(u64 bytes) {
  return fmt::format("{:.2f}", static_cast<double>(bytes) / static_cast<double>(base::kMiB));
}

}  // namespace

ResidentMemory resident_memory(std::string_view smaps, u64 ram_bytes, std::string_view snapshots) {
  ResidentMemory memory;
  bool is_guest = false;
  while (!smaps.empty()) {
    const std::size_t end = std::min(smaps.find('\n'), smaps.size() - 1);
    const std::string line(smaps.substr(0, end));
    smaps.remove_prefix(end + 1);
    u64 mapping_bytes = 0;
    unsigned long rss_kib = 0;
    if (is_heading(line, mapping_bytes)) {
      is_guest = mapping_bytes >= ram_bytes / 2 || line.find(snapshots) != std::string::npos;
    } else if (std::sscanf(line.c_str(), "Rss: %lu kB", &rss_kib) == 1) {
      (is_guest ? memory.guest_bytes : memory.own_bytes) += rss_kib * base::kKiB;
    }
  }
  return memory;
}

Result<ResidentMemory> resident_memory_of(pid_t pid, u64 ram_bytes, const std::string& snapshots) {
  // A file of proc has no size, so not by read_whole_file().
  const std::string path = fmt::format("/proc/{}/smaps", pid);
  std::ifstream file(path);
  std::stringstream smaps;
  smaps << file.rdbuf();
  const ResidentMemory memory = resident_memory(smaps.str(), ram_bytes, snapshots);
  if (memory.own_bytes == 0) return make_error(ErrorKind::failed, "\"{}\" says nothing", path);
  return memory;
}

Result<Table> measure_resident(const Plan& plan) {
  constexpr u64 kMemoryMib = 256;
  constexpr u32 kReverts = 100;
  constexpr u64 kPromisedBytes = 6 * base::kMiB;
  RevertRig rig = TRY(
      RevertRig::start(plan, {.memory_mib = kMemoryMib, .mapped_pages = 4096}, PeerChoice::alone));
  TRY(rig.measure(256, kReverts, 0));
  const ResidentMemory memory = TRY(resident_memory_of(rig.ours().pid(), kMemoryMib * base::kMiB,
                                                       plan.workspace.file("snapshots")));
  return Table{
      .name = "resident",
      .title = fmt::format("resident memory of the process after a snapshot and {} reverts, MiB",
                           kReverts),
      .columns = {"memory", "beside the guest", "the guest and its image"},
      .rows = {{memory_text(kMemoryMib), mib_text(memory.own_bytes), mib_text(memory.guest_bytes)}},
      .bars = {{.text = "at most 6 MiB beside guest memory and the overlay's arena",
                .measured = mib_text(memory.own_bytes) + " MiB",
                .verdict = judge(static_cast<double>(memory.own_bytes), BarSide::at_most,
                                 static_cast<double>(kPromisedBytes))}},
      .notes = {"the sum of Rss in /proc/PID/smaps, without mappings of half of RAM's size or more "
                "and of snapshots' files; the VM has no disk, so no arena"}};
}

}  // namespace bench
