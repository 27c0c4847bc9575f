// Planted faults: ways to be wrong on purpose, so that a test can prove that it would notice.
//
// Only the program `quicksave-faulty` has them (QUICKSAVE_PLANTED_FAULTS); there the environment
// variable QUICKSAVE_FAULT names the one to commit. Everywhere else planted() and planted_once() are
// false at compile time.

#pragma once

#include <cstdlib>
#include <string_view>

namespace vmm {

#ifdef QUICKSAVE_PLANTED_FAULTS
inline bool planted(std::string_view fault) {
  static const char* const chosen = std::getenv("QUICKSAVE_FAULT");
  return chosen != nullptr && fault == chosen;
}
// The same, but only the first time. Thread: one.
inline bool planted_once(std::string_view fault) {
  static bool done = false;
  return !done && (done = planted(fault));
}
#else
constexpr bool planted(std::string_view) { return false; }
constexpr bool planted_once(std::string_view) { return false; }
#endif

}  // namespace vmm
