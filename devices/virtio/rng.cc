#include "devices/virtio/rng.h"

#include <sys/random.h>

#include <algorithm>
#include <array>

namespace devices::virtio {
namespace {

// How many bytes it filled: all, unless the host has no generator.
u64 fill_random(const iovec& bytes) {
  u64 done = 0;
  while (done < bytes.iov_len) {
    const ssize_t got =
        ::getrandom(static_cast<u8*>(bytes.iov_base) + done, bytes.iov_len - done, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    done += static_cast<u64>(got);
  }
  return done;
}

}  // namespace

BeginResult Rng::begin(const Chain& chain, ChainSink& sink) {
  const u64 wanted = std::min(chain.writable_bytes(), kMaxRequestBytes);
  std::array<iovec, kMaxQueueSize> iovecs;
  const std::optional<u32> count = chain.writable_iovecs(memory_, 0, wanted, iovecs);
  u64 written = 0;
  for (u32 index = 0; count && index < *count; ++index) {
    const u64 filled = fill_random(iovecs[index]);
    written += filled;
    if (filled < iovecs[index].iov_len) break;
  }
  sink.complete(chain.head(), static_cast<u32>(written));
  return BeginResult::begun;
}

}  // namespace devices::virtio
