// `doctor`: what this host offers and what it lacks, each with its remedy.

#include <fcntl.h>
#include <grp.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <linux/io_uring.h>

#include <nlohmann/json.hpp>

#include "vmm/control/size_text.h"
#include "vmm/control/verbs.h"
#include "vmm/control/vm_directory.h"

namespace control {
namespace {

// Below this a snapshot of a small guest may not fit.
constexpr u64 kLittleSpaceBytes = base::kGiB;

DoctorLine kernel_line() {
  utsname names{};
  if (::uname(&names) != 0) return {"kernel", Health::odd, "unknown", ""};
  return {"kernel", Health::good, fmt::format("{} {}", names.release, names.machine), ""};
}

DoctorLine kvm_line() {
  const base::Fd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (kvm) return {"/dev/kvm", Health::good, "opens", ""};
  if (errno == ENOENT) {
    return {"/dev/kvm", Health::bad, "is not there",
            "load kvm_amd or kvm_intel; in a VM, turn on nested virtualisation; in a container, "
            "pass the device in"};
  }
  if (errno != EACCES && errno != EPERM) {
    return {"/dev/kvm", Health::bad, errno_error("open").message(), ""};
  }
  struct stat status {};
  ::stat("/dev/kvm", &status);
  // Nobody joins root's group for this, and one that may not write would not help.
  const bool is_for_group = status.st_gid != 0 && (status.st_mode & 0060) == 0060;
  const std::string join_group =
      is_for_group ? "sudo usermod -aG $(stat -c %G /dev/kvm) $USER and log in again; in CI: " : "";
  return {
      "/dev/kvm", Health::bad,
      fmt::format("permission denied: you are uid {}, the device belongs to uid {} gid {}, mode "
                  "{:o}",
                  ::geteuid(), status.st_uid, status.st_gid, status.st_mode & 0777),
      join_group +
          "echo 'KERNEL==\"kvm\", "
          "MODE=\"0666\"' | sudo tee /etc/udev/rules.d/99-kvm.rules; sudo udevadm control "
          "--reload; sudo udevadm trigger --name-match=kvm"};
}

DoctorLine io_uring_line() {
  io_uring_params parameters{};
  const base::Fd ring(static_cast<int>(::syscall(SYS_io_uring_setup, 4, &parameters)));
  if (ring) return {"io_uring", Health::good, "works", ""};
  const std::string reason = errno_error("io_uring_setup").message();
  return {"io_uring", Health::bad, reason,
          "sudo sysctl kernel.io_uring_disabled=0; in a container, allow the io_uring system calls "
          "in its seccomp profile"};
}

DoctorLine memlock_line() {
  // Since Linux 5.12 rings are charged to the memory cgroup; before, to this limit.
  constexpr u64 kEnoughBytes = 8 * base::kMiB;
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return {"memlock", Health::odd, "unknown", ""};
  if (limit.rlim_cur == RLIM_INFINITY) return {"memlock", Health::good, "unlimited", ""};
  const std::string detail = human_size(limit.rlim_cur);
  if (limit.rlim_cur >= kEnoughBytes) return {"memlock", Health::good, detail, ""};
  return {"memlock", Health::odd, detail, "ulimit -l 8192, should io_uring fail with ENOMEM"};
}

DoctorLine home_line(const Home& home) {
  // The directory may be missing yet: what counts is the file system it will be on.
  std::string path = home.state;
  struct statvfs space {};
  while (::statvfs(path.c_str(), &space) != 0) {
    if (path.size() <= 1 || errno != ENOENT) {
      return {"home", Health::bad, errno_error("\"{}\"", path).message(), "set QUICKSAVE_HOME"};
    }
    path = path.substr(0, std::max<std::size_t>(1, path.rfind('/')));
  }
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0 && !S_ISDIR(status.st_mode)) {
    return {"home", Health::bad, fmt::format("\"{}\" is not a directory", path),
            "set QUICKSAVE_HOME to one"};
  }
  if (::access(path.c_str(), W_OK) != 0) {
    return {"home", Health::bad, errno_error("\"{}\"", path).message(),
            "make it writable, or set QUICKSAVE_HOME"};
  }
  const u64 available = u64{space.f_bavail} * space.f_frsize;
  const std::string detail = fmt::format("{}, {} available", home.state, human_size(available));
  if (available >= kLittleSpaceBytes) return {"home", Health::good, detail, ""};
  return {"home", Health::odd, detail, "make room, or set QUICKSAVE_HOME to another disk"};
}

std::string_view word_of(Health health) {
  switch (health) {
    case Health::good: return "ok";
    case Health::odd: return "note";
    case Health::bad: return "BAD";
  }
  return "";
}

}  // namespace

Result<int> doctor(Launcher& launcher, Output output) {
  std::vector<DoctorLine> lines = {kernel_line(), kvm_line(), io_uring_line(), memlock_line()};
  const Result<Home> home = Home::from_environment();
  lines.push_back(
      home ? home_line(*home)
           : DoctorLine{"home", Health::bad, home.error().message(), home.error().hint()});
  if (lines[1].health == Health::good) {
    for (DoctorLine& line : launcher.host_report()) lines.push_back(std::move(line));
  }
  bool is_fit = true;
  nlohmann::json report = nlohmann::json::array();
  std::string text;
  for (const DoctorLine& line : lines) {
    is_fit = is_fit && line.health != Health::bad;
    report.push_back({{"what", line.what},
                      {"health", word_of(line.health)},
                      {"detail", line.detail},
                      {"remedy", line.remedy}});
    text += fmt::format("{:<5}{:<10}{}\n", word_of(line.health), line.what, line.detail);
    if (!line.remedy.empty()) text += fmt::format("{:<15}remedy: {}\n", "", line.remedy);
  }
  if (output == Output::json) {
    put_json({{"fit", is_fit}, {"checks", report}});
  } else {
    put(text + (is_fit ? "This host can run VMs.\n" : "This host cannot run VMs yet.\n"));
  }
  return is_fit ? kExitDone : kExitFailed;
}

}  // namespace control
