// GuestLine: the serial line of guests/dirty_pages.c, from outside.
//
// Thread: one.

#pragma once

#include <string_view>

#include "vmm/bench/child.h"

namespace bench {

class GuestLine final {
 public:
  explicit GuestLine(base::Fd socket) : socket_(std::move(socket)) {}

  // Tells the guest how many pages to map and waits until it has.
  Result<void> begin(u64 mapped_pages);
  // A command that is answered; what the guest said by itself before is passed over.
  Result<void> say(std::string_view command);
  // Lets it speak by itself, until the next command.
  Result<void> let_speak();
  // Waits for the next byte. REQUIRES: the guest was silent.
  Result<void> hear() { return hear_until('s'); }

 private:
  Result<void> send(std::string_view bytes);
  Result<void> hear_until(char wanted);

  base::Fd socket_;
};

}  // namespace bench
