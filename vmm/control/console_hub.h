// ConsoleHub: the guest's console, spread to whoever looks at it.
//
//   vCPU threads --write()--> ring --loop--> console.log, stdout (foreground), console.sock clients
//   stdin, console.sock clients --loop--> input callback (the serial device's receive FIFO)
//
// A reader that does not read never stops the guest: the ring and each reader's backlog are
// bounded, and what does not fit is dropped and counted; a reader that catches up is told how much
// it missed. Input is not dropped but by a revert: while the device is full, nothing more is read from
// anybody.
//
// Invariant: bytes reach every sink in the order in which write() took them.
// Thread: write() and input_room() from any thread; the rest from the loop's.

#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "vmm/base/result.h"
#include "vmm/base/types.h"
#include "vmm/control/launcher.h"
#include "vmm/control/loop.h"

namespace control {

struct ConsoleOptions {
  std::string log_file;     // appended to; empty: no log
  std::string socket_path;  // empty: no clients
  ConsoleTarget target = ConsoleTarget::none;
  u64 backlog_bytes = 256 * base::kKiB;  // the ring, and what one reader may lag behind
  u64 stdio_backlog_bytes = base::kMiB;
};

class ConsoleHub final {
 public:
  // `loop` outlives the hub. With ConsoleTarget::stdio, a terminal is put into raw mode until the
  // hub ends. REQUIRES: this process holds the VM's lock.
  static Result<std::unique_ptr<ConsoleHub>> create(Loop& loop, const ConsoleOptions& options);
  // Calls finish().
  ~ConsoleHub();

  // From the guest. Never blocks.
  void write(std::span<const u8> bytes);
  void write(u8 byte) { write(std::span<const u8>(&byte, 1)); }

  // Where input goes: takes some of the first bytes, says how many. Set before the loop runs.
  void set_input(std::function<u64(std::span<const u8>)> input);
  // The device has room again. Input is retried after 20 ms even if nobody calls this.
  void input_room();

  // Forgets what was typed and has not reached the device: it was meant for a guest that has been
  // reverted. Standard input that is no terminal is a script for whoever comes: it stays.
  void drop_waiting_input();

  // What ^] twice on the foreground's terminal does. Unset: nothing.
  void set_leave(std::function<void()> leave);

  // One line of our own in the log and nowhere else: "[reverted to clean]". It stands behind all that
  // was written before, and is written soon.
  void mark_log(std::string_view line);

  // Hands on all that was written so far, and waits up to a second for a slow stdout. Fails if stdout
  // could not be written: what it lacks is in the log.
  Result<void> finish();

  u64 dropped_bytes() const;  // over all readers and the ring

  struct Impl;

 private:
  explicit ConsoleHub(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace control
