// Planted faults: ways to be wrong on purpose, so that a test can prove that it would notice.
//
// Only code compiled with QUICKSAVE_PLANTED_FAULTS has them. In the program `quicksave-faulty` the
// environment variable QUICKSAVE_FAULT names the one to commit; in blockdev_planted_tests a Plant
// does, for as long as it lives. Everywhere else planted() and planted_once() are false at compile
// time.
//
// Ask in .cc files only: a program may have files compiled both ways, and an inline function of a
// header would be in it twice, with the linker to choose.
// Thread: any; planted_once() and Plant: one.

#pragma once

#include <atomic>
#include <cstdlib>
#include <string_view>

namespace base {

#ifdef QUICKSAVE_PLANTED_FAULTS
inline std::atomic<const char*>& chosen_fault() {
  static std::atomic<const char*> chosen = std::getenv("QUICKSAVE_FAULT");
  return chosen;
}
inline bool planted(std::string_view fault) {
  const char* const chosen = chosen_fault().load(std::memory_order_relaxed);
  return chosen != nullptr && fault == chosen;
}
// The same, but only the first time.
inline bool planted_once(std::string_view fault) {
  static bool done = false;
  return !done && (done = planted(fault));
}

class Plant final {
 public:
  // `fault`: lives as long.
  explicit Plant(const char* fault) : before_(chosen_fault().exchange(fault)) {}
  ~Plant() { chosen_fault() = before_; }
  Plant(const Plant&) = delete;
  Plant& operator=(const Plant&) = delete;

 private:
  const char* before_;
};
#else
// consteval leaves no function behind that could be taken for the other one.
consteval bool planted(std::string_view) { return false; }
consteval bool planted_once(std::string_view) { return false; }
#endif

}  // namespace base
