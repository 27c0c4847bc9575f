#include "vmm/bench/guest_line.h"

#include <span>

namespace bench {

Result<void> GuestLine::begin(u64 mapped_pages) {
  TRY(send(fmt::format("0 {}\n", mapped_pages)));
  return hear_until('\n');  // of READY
}

Result<void> GuestLine::say(std::string_view command) {
  TRY(send(command));
  return hear_until('.');
}

Result<void> GuestLine::let_speak() {
  TRY(send("s"));
  return hear_until('s');
}

Result<void> GuestLine::send(std::string_view bytes) {
  return base::write_all(socket_,
                         std::span(reinterpret_cast<const u8*>(bytes.data()), bytes.size()));
}

Result<void> GuestLine::hear_until(char wanted) {
  while (TRY(read_byte(socket_)) != wanted) continue;
  return {};
}

}  // namespace bench
