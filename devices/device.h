// Device: the lifecycle contract of everything that has state and may have work in flight.
//
//   serving -pause()-> paused -drain()-> quiet -save()/restore()-> quiet -resume()-> serving
//
// pause(): from now on no new work is begun; what the guest asks for is accepted and held (it stays
// in its ring). drain(): returns when nothing is in flight: no request, no interrupt, no write to
// guest memory. resume(): looks again at what was held. All vCPUs are parked before pause() and
// start after resume(). reset(): as just built; REQUIRES quiet.
//
// What a device must remember is its State, saved and restored by base::StatefulOf. A member
// outside State carries a sentence that says why it may be lost.

#pragma once

#include <array>

#include "vmm/base/stateful.h"
#include "vmm/base/types.h"

namespace devices {

enum class TimelineChange : u8 { revert, restore, fork };

// Random, new for every change: what depends on the outside world (connections, entropy) compares
// it to find out that the guest was taken to another point in time.
using Generation = std::array<u8, 16>;

class Device {
 public:
  virtual ~Device() = default;

  virtual base::Stateful& stateful() = 0;

  virtual void reset() = 0;
  virtual void pause() {}
  virtual void drain() {}
  virtual void resume() {}
  // After restore(), before resume(), when the state came from a snapshot.
  virtual void timeline_changed(TimelineChange, const Generation&) {}
};

// One thread's share of a device: a queue. The machine gives each its own thread, which waits for
// the guest's kick or for completion_fd() and calls serve().
class QueueWorker {
 public:
  virtual ~QueueWorker() = default;
  // Delivers what has completed and takes what is in the ring; while paused, only the former.
  // Thread: the worker's own; locks against pause() and drain().
  virtual void serve() = 0;
  // -1 if all work is done inside serve(). Valid from construction on and constant.
  virtual int completion_fd() const = 0;
};

// How a device wakes the thread of one of its queues (a notify register write that KVM did not
// swallow, held work after resume()). Thread: any; a leaf.
class QueueKicker {
 public:
  virtual ~QueueKicker() = default;
  virtual void kick(u32 queue_index) = 0;
};

// What devices tell the machine. Thread: any; returns at once, the machine acts later.
class MachineEvents {
 public:
  virtual ~MachineEvents() = default;
  virtual void power_off_requested() = 0;
  virtual void reboot_requested() = 0;
  // A disk's host file system is full and the request waits for resume(): pause the machine.
  virtual void out_of_space(std::string_view disk_name) = 0;
};

}  // namespace devices
