// One-line log to stderr (or to the file stderr was pointed at). Leaf: may be called from any
// thread, never from a signal handler.
//
// Lines that a guest can cause go through RateLimit, so that it cannot fill the disk.

#pragma once

#include <fmt/format.h>

#include <atomic>
#include <string_view>
#include <utility>

#include "vmm/base/types.h"

namespace base {

enum class LogLevel : u8 { debug, info, warning, error };

void set_log_level(LogLevel level);
bool log_enabled(LogLevel level);
void log_line(LogLevel level, std::string_view text);

template <class... Args>
void log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (log_enabled(level)) log_line(level, fmt::format(format, std::forward<Args>(args)...));
}

// allows() is true for the first `burst` calls and from then on once a second.
class RateLimit final {
 public:
  explicit RateLimit(u32 burst) : left_(static_cast<i64>(burst)) {}
  bool allows();

 private:
  std::atomic<i64> left_;
  std::atomic<i64> last_allowed_s_{0};
};

}  // namespace base
