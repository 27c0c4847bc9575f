#include "vmm/boot/random_bytes.h"

#include <sys/random.h>

namespace boot {

Result<void> fill_random(std::span<u8> bytes) {
  // Up to 256 bytes come whole and without EINTR (getrandom(2), "Interruption by a signal
  // handler").
  const ssize_t count = ::getrandom(bytes.data(), bytes.size(), 0);
  if (count < 0) return errno_error("getrandom");
  if (static_cast<std::size_t>(count) != bytes.size()) {
    return make_error(ErrorKind::failed, "getrandom gave {} of {} bytes", count, bytes.size());
  }
  return {};
}

}  // namespace boot
