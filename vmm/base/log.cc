#include "vmm/base/log.h"

#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <string>

#include "vmm/base/check.h"

namespace base {
namespace {

std::atomic<LogLevel> g_level{LogLevel::info};

std::string_view prefix(LogLevel level) {
  switch (level) {
    case LogLevel::debug: return "debug: ";
    case LogLevel::info: return "";
    case LogLevel::warning: return "warning: ";
    case LogLevel::error: return "error: ";
  }
  return "";
}

}  // namespace

void set_log_level(LogLevel level) { g_level.store(level, std::memory_order_relaxed); }

bool log_enabled(LogLevel level) { return level >= g_level.load(std::memory_order_relaxed); }

void log_line(LogLevel level, std::string_view text) {
  // One write, so that lines of several threads and processes do not mix. A log that cannot be
  // written has nowhere to complain.
  const std::string line = fmt::format("{}{}\n", prefix(level), text);
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

bool RateLimit::allows() {
  if (left_.load(std::memory_order_relaxed) > 0 &&
      left_.fetch_sub(1, std::memory_order_relaxed) > 0) {
    return true;
  }
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  i64 last = last_allowed_s_.load(std::memory_order_relaxed);
  return last != now.tv_sec && last_allowed_s_.compare_exchange_strong(last, now.tv_sec);
}

void check_failed(const char* file, int line, std::string_view condition) {
  log_line(LogLevel::error, fmt::format("{}:{}: CHECK failed: {}", file, line, condition));
  std::abort();
}

}  // namespace base
