#include "vmm/bench/host_header.h"

#include <sched.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <ctime>
#include <fstream>

#include "vmm/control/version.h"
#include "vmm/kvm/kvm.h"

namespace bench {
namespace {

// As the host's kernel names it: KVM's CPUID has no name on every host.
std::string processor_text() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

std::string kernel_text() {
  utsname names{};
  if (::uname(&names) != 0) return "unknown";
  return fmt::format("{} {}", names.sysname, names.release);
}

std::string memory_line() {
  struct sysinfo info {};
  if (::sysinfo(&info) != 0) return "unknown";
  const auto gib = [&info](u64 units) {
    return static_cast<double>(units * info.mem_unit) / static_cast<double>(base::kGiB);
  };
  return fmt::format("{:.1f} GiB, {:.1f} free", gib(info.totalram), gib(info.freeram));
}

std::string load_text() {
  std::ifstream file("/proc/loadavg");
  std::string one, five, fifteen;
  file >> one >> five >> fifteen;
  return fmt::format("{} {} {} on {} processors", one, five, fifteen,
                     ::sysconf(_SC_NPROCESSORS_ONLN));
}

std::string date_text() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  char text[64] = "";
  if (::gmtime_r(&now, &parts) != nullptr) std::strftime(text, sizeof text, "%F %T UTC", &parts);
  return text;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> host_header(
    const Plan& plan, const std::vector<std::string>& arguments) {
  std::string command = "quicksave bench";
  for (const std::string& argument : arguments) command += " " + argument;
  const Result<kvm::Kvm> kvm = kvm::Kvm::open();
  return {{"command", command},
          {"version", control::kVersion},
          {"date", date_text()},
          {"KVM", kvm ? std::string(kvm->kind_name()) : kvm.error().message()},
          {"processor", processor_text()},
          {"kernel", kernel_text()},
          {"memory", memory_line()},
          {"load", load_text()},
          {"files in", plan.workspace.path()},
          {"peer", plan.peer ? *plan.peer + ", microvm, qemu64" : "none"},
          {"client", (::sched_getscheduler(0) & ~SCHED_RESET_ON_FORK) == SCHED_RR
                         ? "runs before what it measures (SCHED_RR)"
                         : "waits for a processor like any other process"},
          {"counts", plan.quick ? "few (--quick): for a look, not for a claim" : "full"}};
}

}  // namespace bench
