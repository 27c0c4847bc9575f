// WritableImage: the uppermost layer of a durable disk: an image that is written while it is read.
//
// It decides where bytes go and remembers that they are there; the queues move them. A queue takes
// a request to begin_write() from front to back and does what the answer says:
//
//   nothing   that much of the range needs no write
//   in_place  write at file_offset (zeros for the zeroing kinds); nothing to tell afterwards
//   allocate  write all of `covered` at file_offset, what lies around the request's bytes filled
//             from the stack (with `fresh`, only as far as that is not zero); then end_write()
//   punch     punch as many bytes at file_offset, if the file system can; then end_write()
//   punch_in_place  as in_place, by punching; where the file system cannot, by writing zeros, or
//   for
//             a discard not at all
//   wait      another request has a part of it: the waker is called when to try again
//   fail      `status`
//
// Invariant: between begin_write() and end_write() no other request changes the mapping of
// `covered`, and readers see what was there before (reference/qcow2.md 2.6, C1, C2 and C4b).
// Thread: all calls from any thread; a flush waits for another. close() and resize() with nothing in
// flight, resize() with no flush running.

#pragma once

#include <memory>

#include "blockdev/block_backend.h"
#include "blockdev/layer.h"
#include "blockdev/waiting_io.h"

namespace blockdev {

enum class WriteKind : u8 {
  data,
  zeroes,        // and the host keeps its space
  zeroes_unmap,  // and the host gets its space back
  discard,       // as zeroes_unmap where it is cheap, and nothing elsewhere
};

// Whether the place a range is written to has ever held anything: if not, it reads as zeros.
enum class HostState : u8 { used, fresh };

enum class StepKind : u8 { nothing, in_place, allocate, punch, punch_in_place, wait, fail };

struct WriteStep {
  StepKind kind = StepKind::nothing;
  u64 length_bytes = 0;  // of the request, from the front of its range
  u64 file_offset = 0;
  ByteRange covered = {};  // of the disk
  HostState host = HostState::used;
  BlockStatus status = BlockStatus::ok;
};

// A write between begin_write() and end_write(). The queue keeps it in place; what is in it is the
// image's.
struct WriteTicket {
  WriteKind kind = WriteKind::data;
  ByteRange covered = {};
  u64 file_offset = 0;
  HostState host = HostState::used;
  bool has_reserved = false;  // the place is not in the image's tables yet
};

// An image keeps it while it is to be woken: by then the queue may have gone on by itself, and be
// gone.
class Waker : public std::enable_shared_from_this<Waker> {
 public:
  virtual ~Waker() = default;
  // From any thread, without a lock of the image.
  virtual void wake() = 0;
};

// What an image holds back that no guest may ever ask to be made durable.
enum class FlushNeed : u8 {
  none,
  some_time,
  now,  // writes wait for it
};

class WritableImage : public Layer {
 public:
  virtual int fd() const = 0;
  // What discard works in.
  virtual u32 discard_granularity_bytes() const = 0;

  virtual WriteStep begin_write(ByteRange range, WriteKind kind, WriteTicket& ticket,
                                Waker& waker) = 0;
  // `error_number`: what became of the write; 0: the range holds it from now on.
  virtual void end_write(WriteTicket& ticket, int error_number) = 0;

  // Makes durable what is complete. Returns 0 or an errno.
  enum class FlushReason : u8 { guest, background };
  virtual int flush(WaitingIo& io, FlushReason reason) = 0;
  virtual FlushNeed flush_need() const = 0;
  // Makes room for a disk of this size. Whoever opens the file sees the size of before until
  // record_size(), which makes durable what was written since too: first the new sectors are made
  // what they are to be.
  virtual Result<void> resize(u64 size_bytes, WaitingIo& io) = 0;
  virtual Result<void> record_size(WaitingIo& io) = 0;
  // Whether the file may hold something behind the end of the disk, and show it when the disk grows.
  virtual bool may_keep_what_is_behind() const = 0;
  // Leaves the file as others expect it. A flush that comes later changes nothing more.
  virtual Result<void> close(WaitingIo& io) = 0;
};

}  // namespace blockdev
