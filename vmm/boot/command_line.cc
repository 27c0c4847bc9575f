#include "vmm/boot/command_line.h"

#include <algorithm>

#include "vmm/base/check.h"
#include "vmm/boot/layout.h"

namespace boot {

Result<void> write_command_line(memory::GuestMemory& memory, std::string_view text,
                                u64 maximum_bytes) {
  const u64 maximum = std::min(maximum_bytes, kCommandLineAreaBytes - 1);
  if (text.size() > maximum) {
    return make_error(ErrorKind::usage, "command line has {} bytes, this kernel takes at most {}",
                      text.size(), maximum)
        .with_hint("shorten --append");
  }
  // A tab separates words like a space; anything else below space ends up in the kernel's log and
  // in /proc/cmdline as it is, or, like NUL, hides what follows.
  const auto is_control = [](char c) {
    return (static_cast<u8>(c) < 0x20 && c != '\t') || c == 0x7f;
  };
  const auto bad = std::find_if(text.begin(), text.end(), is_control);
  if (bad != text.end()) {
    return make_error(ErrorKind::usage, "command line has a control character {:#04x} at byte {}",
                      static_cast<u8>(*bad), bad - text.begin())
        .with_hint("--append takes one line of text");
  }
  // RAM is zero: the NUL is there already, and no page is touched for an empty line.
  const std::span<const u8> bytes{reinterpret_cast<const u8*>(text.data()), text.size()};
  CHECK(memory.write(Gpa{kCommandLineAddress}, bytes));
  return {};
}

}  // namespace boot
