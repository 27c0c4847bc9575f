// What a virtio device type adds to the transport: an identity, a configuration space, and one
// QueueHandler for each queue, which turns chains into answers.
//
// The device type holds no guest-visible state of its own: what must be remembered are the requests
// it could not finish, and the QueueRunner keeps those as chain heads.

#pragma once

#include <span>
#include <vector>

#include "devices/virtio/chain.h"
#include "vmm/base/types.h"

namespace devices::virtio {

// Where a handler delivers what it has done with a chain. Called on the thread, and under the
// queue's lock, of begin(), poll() or drain().
class ChainSink {
 public:
  virtual ~ChainSink() = default;
  // Back to the guest; `written_bytes` of its writable part were filled from the front.
  virtual void complete(u16 head, u32 written_bytes) = 0;
  // Cannot be done now: begin() it again after the next resume(). The head stays the device's.
  virtual void hold(u16 head) = 0;
  // Whether a pause or a reset waits for the queue. Who works for long on one chain asks now and
  // then, and holds it.
  virtual bool must_yield() const = 0;
};

enum class BeginResult : u8 {
  begun,      // complete() or hold() was called or will be
  malformed,  // no answer is possible in this chain: the device needs a reset
};

// One queue's share of a device. Thread: under the queue's lock.
class QueueHandler {
 public:
  virtual ~QueueHandler() = default;
  // What the driver has negotiated, before the queue starts.
  virtual void use_features(u64 /*driver_features*/) {}
  // Whether begin() has room for one more. While it has not, chains stay in the ring.
  virtual bool can_begin() const { return true; }
  // REQUIRES: can_begin(). `chain` is valid during the call.
  virtual BeginResult begin(const Chain& chain, ChainSink& sink) = 0;
  // Delivers what has completed; never blocks.
  virtual void poll() {}
  // Delivers until nothing is in flight.
  virtual void drain() {}
  virtual u32 in_flight_count() const { return 0; }
  virtual int completion_fd() const { return -1; }
};

// Thread: constant after construction, except the handlers' calls.
class DeviceType {
 public:
  virtual ~DeviceType() = default;
  virtual u32 device_id() const = 0;        // virtio 1.2, 5 "Device Types"
  virtual u64 device_features() const = 0;  // without the transport's own
  virtual std::span<const u8> config_space() const = 0;
  virtual u32 queue_count() const = 0;
  virtual QueueHandler& queue_handler(u32 index) = 0;
};

}  // namespace devices::virtio
