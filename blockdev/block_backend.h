// BlockBackend: a disk, and BlockQueue: one thread's door to it.
//
// A client (virtio-blk, a test, a tool) opens one BlockQueue for each thread that submits. Requests
// of one queue complete in any order, on the thread that calls submit(), poll() or drain() of that
// queue. Requests of different queues run at the same time; where they overlap, each sector ends up
// as one of them left it.
//
// Invariant: a request belongs to the backend from submit() until on_done(); the client keeps it and
// its buffers alive and unchanged that long.
// Invariant: buffers are plain host memory. Who lends guest memory marks it dirty before submit().
// Invariant: a flush that completes makes every write that completed before its submission as
// durable as the disk's mode promises (a throw-away overlay promises nothing).

#pragma once

#include <sys/uio.h>

#include <cerrno>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace blockdev {

inline constexpr u32 kSectorBytes = 512;
// 1 PiB. The overlay's index takes 2 bytes of address space for each KiB of disk: 2 TiB of the 128
// that a process has.
inline constexpr u64 kMaxDiskBytes = u64{1} << 50;

enum class BlockOp : u8 { read, write, flush, discard, write_zeroes };

enum class BlockStatus : u8 {
  ok,
  io_error,   // the request failed; its target sectors hold old or new data
  no_space,   // as io_error, and trying again once the host has room may succeed
  read_only,  // a write to a disk opened read-only
  not_begun,  // a flush that drain() found waiting (flush_gate.h): to be submitted again later
};

inline BlockStatus status_of_errno(int error_number) {
  if (error_number == 0) return BlockStatus::ok;
  const bool is_full = error_number == ENOSPC || error_number == EDQUOT;
  return is_full ? BlockStatus::no_space : BlockStatus::io_error;
}

// Whether write_zeroes may give the space back to the host.
enum class Unmap : u8 { no, yes };

class BlockClient;

struct BlockRequest {
  BlockOp op = BlockOp::read;
  Unmap unmap = Unmap::no;
  u64 offset_bytes = 0;            // multiple of 512
  u64 length_bytes = 0;            // multiple of 512; 0 for flush
  std::span<const iovec> buffers;  // read, write: `length_bytes` in total
  BlockClient* client = nullptr;
};

class BlockClient {
 public:
  virtual ~BlockClient() = default;
  // The request is the client's again and may be submitted anew from inside this call.
  virtual void on_done(BlockRequest& request, BlockStatus status) = 0;
};

// Thread: one thread at a time (the caller's lock or the owning thread); moving to another thread is
// allowed while nothing is in flight.
class BlockQueue {
 public:
  // REQUIRES: nothing in flight.
  virtual ~BlockQueue() = default;

  // REQUIRES: the range lies within the disk. on_done() may be called before this returns.
  virtual void submit(BlockRequest& request) = 0;
  // Delivers what has completed; never blocks.
  virtual void poll() = 0;
  // Readable while poll() has something to deliver. Owned by the queue.
  virtual int completion_fd() const = 0;
  virtual u32 in_flight_count() const = 0;
  // Polls until nothing is in flight.
  virtual void drain() = 0;
};

// What a run of a disk reads as, as far as that is known without reading it.
enum class Content : u8 { data, zero };

struct ContentRun {
  Content content = Content::data;
  u64 length_bytes = 0;
  bool operator==(const ContentRun&) const = default;
};

// Thread: all calls from any thread.
class BlockBackend {
 public:
  virtual ~BlockBackend() = default;

  virtual u64 size_bytes() const = 0;  // multiple of 512
  virtual bool is_read_only() const = 0;
  // What discard works in: requests smaller than this or off its boundaries may be ignored.
  virtual u32 discard_granularity_bytes() const = 0;
  virtual Result<std::unique_ptr<BlockQueue>> open_queue() = 0;
  // What the front of a range holds, as runs of whole sectors from `offset` on: at least one, at
  // most `max_runs`, together not longer than the range. Writes meanwhile may or may not be seen.
  // A disk that cannot tell says data. REQUIRES: whole sectors within the disk, length_bytes > 0,
  // max_runs > 0.
  virtual Result<std::vector<ContentRun>> map_content(u64 /*offset_bytes*/, u64 length_bytes,
                                                      u64 /*max_runs*/) const {
    return std::vector<ContentRun>{{Content::data, length_bytes}};
  }
};

}  // namespace blockdev
