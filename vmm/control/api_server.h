// ApiServer: HTTP/1.1 with JSON bodies on the VM's unix socket.
//
//   GET  /v1/vm            ->
//   {"name","state","pid","paused_because","current_snapshot","uptime_ms",
//                              "reverts","config"}
//   GET  /v1/vm/config     -> the configuration, or null while there is none
//   PUT  /v1/vm/config     {"kernel","initrd"?,"append"?,"memory_bytes"?,"cpus"?,"disks"?,
//                           "on_enospc"?}                               -> the configuration
//   PUT  /v1/vm/state      {"state":"running"|"paused"}                 -> {"state"}
//   POST /v1/power-button  {}                                           -> {}
//   POST /v1/kill          {}                                           -> {}
//   POST /v1/snapshots     {"name"?,"description"?,"wait"?:true}
//                          -> {"name","uuid","pause_us","total_us","memory_bytes","disk_bytes",
//                              "durable"}
//   DELETE /v1/snapshots/NAME                                           -> {}
//   POST /v1/revert        {"snapshot"?,"clock"?:"realtime"|"frozen","verify"?:false}
//                          -> {"snapshot","total_us","dirty_pages","clusters","phases_us":{...}}
//
// A VM made by `run --unconfigured` has the state "unconfigured" and no machine yet: its configuration
// can be put as often as wanted, and the first {"state":"running"} starts it; a start that is refused
// leaves it unconfigured. Until then the rest answers 409, except reading and killing; after it, a
// configuration does. "append" is the whole kernel command line, by default "console=ttyS0 panic=-1";
// paths are absolute; "disks" are arguments of --disk.
//
// An empty body counts as {}. Anything else that fails answers
//   {"error":{"kind","message","hint"}}
// with 400 (the request makes no sense), 404, 405, 408 (too slow), 409 (wrong state, or another
// operation is under way), 413, 431, 500, 501, 503 or 507 (no space). `hint` may be empty.
//
// While a snapshot is being taken everything that changes the VM is refused with 409 and the name
// of what is under way; reading and killing are not. The guest going on ends that, not the end of
// the writing: an in-place revert need not wait for a disk.
//
// A revert is served inside the handler that read its request, and the answer is written before the
// handler returns: its time is what users wait for.
//
// Limits: 64 clients; 8 KiB of header and 64 KiB of body; 10 s from a request's first byte to its
// last and for taking an answer. A client may keep the connection and say nothing for ever, unless its
// place is needed: one client too many gets that of whoever has said nothing for longest, and 503 if
// nobody is idle.
//
// Thread: the loop's.

#pragma once

#include <memory>
#include <string>

#include "vmm/base/result.h"
#include "vmm/control/loop.h"
#include "vmm/control/vm_control.h"

namespace control {

struct ApiLimits {
  u32 clients = 64;
  u32 header_bytes = 8 * 1024;
  u64 body_bytes = 64 * 1024;
  u64 slow_client_ms = 10'000;
};

class ApiServer final {
 public:
  // Listens on `socket_path`, 0600. `loop` and `vm` outlive the server.
  // REQUIRES: this process holds the VM's lock.
  static Result<std::unique_ptr<ApiServer>> create(Loop& loop, VmControl& vm,
                                                   const std::string& socket_path,
                                                   const ApiLimits& limits = {});
  // Closes all connections and removes the socket.
  ~ApiServer();

  // Writes out what clients still have to get (the answer to a kill), for a moment at most.
  void finish();

  struct Impl;

 private:
  explicit ApiServer(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace control
