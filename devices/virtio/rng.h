// Rng: virtio-rng (virtio 1.2, 5.4 "Entropy Device"): the guest's buffers are filled from the
// host's generator. There is nothing to save: after a revert the bytes are new, as they must be.
//
// Thread: under the queue's lock.

#pragma once

#include "devices/virtio/handler.h"
#include "devices/virtio/queue.h"
#include "vmm/memory/guest_memory.h"

namespace devices::virtio {

class Rng final : public DeviceType, private QueueHandler {
 public:
  // At most this much for one request; the used length tells the guest. Whatever the guest asks
  // for, one request costs a bounded time.
  static constexpr u64 kMaxRequestBytes = 64 * base::kKiB;

  explicit Rng(memory::GuestMemory& memory) : memory_(memory) {}

  u32 device_id() const override { return 4; }
  u64 device_features() const override { return 0; }
  std::span<const u8> config_space() const override { return {}; }
  u32 queue_count() const override { return 1; }
  QueueHandler& queue_handler(u32) override { return *this; }

 private:
  BeginResult begin(const Chain& chain, ChainSink& sink) override;

  memory::GuestMemory& memory_;
};

}  // namespace devices::virtio
