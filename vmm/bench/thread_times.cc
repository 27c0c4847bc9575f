#include "vmm/bench/thread_times.h"

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace bench {
namespace {

// Files of proc have no size, so not by read_whole_file().
std::string text_of_proc(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// proc(5): "TID (NAME) STATE ..."; the name may hold anything, so from its last bracket on. utime
// and stime are the fields 14 and 15, in ticks of 10 ms.
bool read_stat(const std::string& text, std::string& name, ThreadTimes& times) {
  const std::size_t open = text.find('(');
  const std::size_t close = text.rfind(')');
  if (open == std::string::npos || close == std::string::npos || close < open) return false;
  name = text.substr(open + 1, close - open - 1);
  std::istringstream fields(text.substr(close + 1));
  std::string ignored;
  for (int field = 3; field < 14; ++field) fields >> ignored;
  double user = 0;
  double system = 0;
  if (!(fields >> user >> system)) return false;
  const double us_per_tick = 1e6 / static_cast<double>(::sysconf(_SC_CLK_TCK));
  times.user_us = user * us_per_tick;
  times.system_us = system * us_per_tick;
  return true;
}

u64 sleeps_in(const std::string& status) {
  constexpr std::string_view kName = "\nvoluntary_ctxt_switches:";
  const std::size_t at = status.find(kName);
  return at == std::string::npos ? 0
                                 : std::strtoull(status.c_str() + at + kName.size(), nullptr, 10);
}

double microseconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_usec);
}

}  // namespace

ThreadTimes& ThreadTimes::operator+=(const ThreadTimes& other) {
  user_us += other.user_us;
  system_us += other.system_us;
  sleeps += other.sleeps;
  return *this;
}

ThreadTimes ThreadTimes::operator-(const ThreadTimes& earlier) const {
  return {user_us - earlier.user_us, system_us - earlier.system_us, sleeps - earlier.sleeps};
}

Result<ThreadTimesByName> thread_times_of(pid_t pid) {
  ThreadTimesByName all;
  std::error_code code;
  // increment() and not a range: the process may end meanwhile.
  for (std::filesystem::directory_iterator task(fmt::format("/proc/{}/task", pid), code), end;
       !code && task != end; task.increment(code)) {
    std::string name;
    ThreadTimes times;
    // A thread that ends meanwhile has no files any more.
    if (!read_stat(text_of_proc(task->path() / "stat"), name, times)) continue;
    times.sleeps = sleeps_in(text_of_proc(task->path() / "status"));
    all[name] += times;
  }
  if (all.empty()) return make_error(ErrorKind::failed, "process {} has no threads", pid);
  return all;
}

ThreadTimes times_of_ended_children() {
  rusage usage{};
  ::getrusage(RUSAGE_CHILDREN, &usage);
  return {microseconds(usage.ru_utime), microseconds(usage.ru_stime),
          static_cast<u64>(usage.ru_nvcsw)};
}

}  // namespace bench
