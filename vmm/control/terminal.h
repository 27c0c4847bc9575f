// Raw mode of the terminal on standard input, and its way back.
//
// Thread: one terminal per process; begin and end on one thread.

#pragma once

#include <memory>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace control {

// Leaves the console when it is typed: ^].
inline constexpr u8 kEscapeByte = 0x1d;

class RawTerminal final {
 public:
  // Null if standard input is no terminal, or another job's: then it must be left alone.
  static std::unique_ptr<RawTerminal> begin();
  // Back as it was. Fatal signals and exit() do the same.
  ~RawTerminal();
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  RawTerminal() = default;
};

}  // namespace control
