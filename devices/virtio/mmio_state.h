// MmioState: what a virtio-mmio device must remember, and what a state must fulfil to be one that a
// device can be in. What the guest writes and what a snapshot holds is judged by the same
// functions.

#pragma once

#include <span>
#include <vector>

#include "devices/virtio/queue.h"
#include "vmm/base/codec.h"
#include "vmm/base/result.h"
#include "vmm/memory/guest_memory.h"

namespace devices::virtio {

// virtio 1.2, 6 "Reserved Feature Bits"
inline constexpr u64 kFeatureIndirect = u64{1} << 28;    // VIRTIO_F_INDIRECT_DESC
inline constexpr u64 kFeatureEventIndex = u64{1} << 29;  // VIRTIO_F_EVENT_IDX
inline constexpr u64 kFeatureVersion1 = u64{1} << 32;    // VIRTIO_F_VERSION_1

struct MmioState {
  u32 device_id = 0;  // constant; a snapshot of another kind of device is refused
  u32 status = 0;     // StatusBit
  u32 device_features_select = 0;
  u32 driver_features_select = 0;
  u64 driver_features = 0;
  u32 queue_select = 0;
  u32 interrupt_status = 0;  // InterruptBit
  std::vector<QueueState> queues;

  static constexpr auto fields() {
    using S = MmioState;
    return std::tuple(base::field<1>("device_id", &S::device_id),
                      base::field<2>("status", &S::status),
                      base::field<3>("device_features_select", &S::device_features_select),
                      base::field<4>("driver_features_select", &S::driver_features_select),
                      base::field<5>("driver_features", &S::driver_features),
                      base::field<6>("queue_select", &S::queue_select),
                      base::field<7>("interrupt_status", &S::interrupt_status),
                      base::field<8>("queues", &S::queues));
  }
};

// Whether a driver may hold these status bits at once: none, or the first few of 3.1.1 "Driver
// Requirements: Device Initialization"; and kFailed.
bool is_legal_status(u32 bits);

// The rule of FEATURES_OK.
Result<void> check_features(u64 driver, u64 offered);

// The rule of DRIVER_OK: check_geometry() of every queue that is ready.
Result<void> check_all_geometry(std::span<const QueueState> queues,
                                const memory::GuestMemory& memory);

// What a state is restored into.
struct MmioFacts {
  u32 device_id = 0;
  u64 queue_count = 0;
  u64 offered_features = 0;
};

Result<void> check_state(const MmioState& state, const MmioFacts& facts,
                         const memory::GuestMemory& memory);

// Whether the queues of a checked state run.
bool has_running_queues(const MmioState& state, const memory::GuestMemory& memory);

}  // namespace devices::virtio
