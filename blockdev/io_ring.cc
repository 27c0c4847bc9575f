#include "blockdev/io_ring.h"

#include <linux/magic.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "blockdev/sync_engine.h"
#include "vmm/base/check.h"
#include "vmm/base/log.h"

namespace blockdev {
namespace {

Error ring_error(int result, std::string_view what) { return Error::from_errno(-result, what); }

// liburing 2.3 declares wrappers for the two calls below but does not export them from its shared
// library.
int register_with_ring(const io_uring& ring, unsigned opcode, const void* argument,
                       unsigned count) {
  const long result = ::syscall(__NR_io_uring_register, ring.ring_fd, opcode, argument, count);
  return result < 0 ? -errno : static_cast<int>(result);
}

io_uring_restriction allow(u8 opcode) {
  io_uring_restriction restriction{};
  restriction.opcode = IORING_RESTRICTION_SQE_OP;
  restriction.sqe_op = opcode;
  return restriction;
}

u64 total_bytes(std::span<const iovec> buffers) {
  u64 total = 0;
  for (const iovec& buffer : buffers) total += buffer.iov_len;
  return total;
}

// One call in the usual case, and no copy of the list.
int transfer_at_once(const IoOperation& operation) {
  const int count = static_cast<int>(operation.buffers.size());
  const off_t offset = static_cast<off_t>(operation.offset);
  const ssize_t result = operation.kind == IoKind::read
                             ? ::preadv(operation.fd, operation.buffers.data(), count, offset)
                             : ::pwritev(operation.fd, operation.buffers.data(), count, offset);
  if (result >= 0 && static_cast<u64>(result) == total_bytes(operation.buffers)) return 0;
  return run_now(operation);  // says what is wrong, or goes on with what is left
}

// A read that the page cache can answer, or nothing.
std::optional<int> read_if_cached(const IoOperation& operation) {
  const ssize_t result =
      ::preadv2(operation.fd, operation.buffers.data(), static_cast<int>(operation.buffers.size()),
                static_cast<off_t>(operation.offset), RWF_NOWAIT);
  if (result < 0 || static_cast<u64>(result) != total_bytes(operation.buffers)) return std::nullopt;
  return 0;
}

}  // namespace

Result<std::unique_ptr<IoEngine>> make_io_engine() {
  Result<std::unique_ptr<IoRing>> ring = IoRing::create();
  if (ring) return std::unique_ptr<IoEngine>(std::move(*ring));
  base::log(base::LogLevel::warning, "{}; a disk is read with plain system calls, which is slower",
            ring.error().message());
  return std::unique_ptr<IoEngine>(TRY(SyncEngine::create()));
}

Result<std::unique_ptr<IoRing>> IoRing::create() {
  std::unique_ptr<IoRing> ring(new IoRing(TRY(base::EventFd::create())));
  TRY_CONTEXT(ring->start(), "io_uring is not available");
  return ring;
}

Result<void> IoRing::start() {
  io_uring_params params{};
  params.flags = IORING_SETUP_R_DISABLED;
  int result = io_uring_queue_init_params(kDepth, &ring_, &params);
  if (result < 0) return ring_error(result, "set up a ring");
  is_started_ = true;
  result = io_uring_register_eventfd(&ring_, done_event_.fd().get());
  if (result < 0) return ring_error(result, "register an eventfd");
  std::array restrictions = {allow(IORING_OP_READV), allow(IORING_OP_WRITEV),
                             allow(IORING_OP_FSYNC), allow(IORING_OP_FALLOCATE)};
  result = register_with_ring(ring_, IORING_REGISTER_RESTRICTIONS, restrictions.data(),
                              restrictions.size());
  if (result < 0) return ring_error(result, "restrict a ring");
  result = register_with_ring(ring_, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
  if (result < 0) return ring_error(result, "enable a ring");
  return {};
}

IoRing::~IoRing() {
  CHECK(in_flight_ == 0);
  if (is_started_) io_uring_queue_exit(&ring_);
}

std::optional<int> IoRing::try_now(const IoOperation& operation) {
  const bool moves_bytes = operation.kind == IoKind::read || operation.kind == IoKind::write;
  if (!moves_bytes || operation.buffers.size() > IoTransfer::kMaxIovecs) return std::nullopt;
  if (operation.kind == IoKind::write || is_in_memory(operation.fd)) {
    return transfer_at_once(operation);
  }
  return read_if_cached(operation);
}

bool IoRing::is_in_memory(int fd) {
  const u64 index = static_cast<u64>(fd);
  if (index >= mediums_.size()) mediums_.resize(index + 1, Medium::unknown);
  if (mediums_[index] == Medium::unknown) {
    struct statfs status {};
    const bool is_tmpfs = ::fstatfs(fd, &status) == 0 && status.f_type == TMPFS_MAGIC;
    mediums_[index] = is_tmpfs ? Medium::memory : Medium::device;
  }
  return mediums_[index] == Medium::memory;
}

void IoRing::submit(const IoOperation& operation) {
  if (operation.kind == IoKind::truncate) {
    done_.push_back({operation.tag, run_now(operation)});
    done_event_.signal();
    ++in_flight_;
    return;
  }
  if (free_slots_.empty()) {
    free_slots_.push_back(static_cast<u32>(slots_.size()));
    slots_.emplace_back();
  }
  const u32 slot = free_slots_.back();
  free_slots_.pop_back();
  slots_[slot].start(operation);
  ++in_flight_;
  queue_slot(slot);
}

void IoRing::queue_slot(u32 slot) {
  if (with_kernel_ < kDepth) {
    prepare(slot);
  } else {
    waiting_.push_back(slot);
  }
}

void IoRing::prepare(u32 slot) {
  const IoTransfer& transfer = slots_[slot];
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  CHECK(sqe != nullptr);  // its entries are among the with_kernel_ ones
  switch (transfer.kind) {
    case IoKind::read:
      io_uring_prep_readv(sqe, transfer.fd, transfer.next_buffers(), transfer.next_count(),
                          transfer.offset);
      break;
    case IoKind::write:
      io_uring_prep_writev(sqe, transfer.fd, transfer.next_buffers(), transfer.next_count(),
                           transfer.offset);
      break;
    case IoKind::sync: io_uring_prep_fsync(sqe, transfer.fd, IORING_FSYNC_DATASYNC); break;
    case IoKind::punch:
      io_uring_prep_fallocate(sqe, transfer.fd, kPunchMode, static_cast<off_t>(transfer.offset),
                              static_cast<off_t>(transfer.length));
      break;
    case IoKind::truncate: CHECK(false);  // never gets here
  }
  io_uring_sqe_set_data64(sqe, slot);
  ++with_kernel_;
}

// What the kernel does not take now stays in the submission queue for the next kick() or wait().
void IoRing::kick() {
  int result = 0;
  do {
    result = io_uring_submit(&ring_);
  } while (result == -EINTR);
  CHECK(result >= 0 || result == -EAGAIN || result == -EBUSY);
  // The kernel had no memory for any of them: nothing will end, so nobody would come again.
  if (result < 0 && io_uring_sq_ready(&ring_) == with_kernel_) done_event_.signal();
}

void IoRing::reap(std::vector<IoCompletion>& completions) {
  // Always, and before looking: the kernel signals after it posted, so a completion that was
  // already taken below may signal late and would leave the descriptor readable for nothing.
  done_event_.take();
  in_flight_ -= static_cast<u32>(done_.size());
  completions.insert(completions.end(), done_.begin(), done_.end());
  done_.clear();
  io_uring_cqe* cqe = nullptr;
  bool is_kick_needed = io_uring_sq_ready(&ring_) > 0;
  while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
    const u32 slot = static_cast<u32>(io_uring_cqe_get_data64(cqe));
    const int result = cqe->res;
    io_uring_cqe_seen(&ring_, cqe);
    --with_kernel_;
    int error_number = 0;
    if (slots_[slot].take_result(result, error_number) == IoTransfer::Step::again) {
      prepare(slot);
      is_kick_needed = true;
      continue;
    }
    // The file cannot be waited for through the ring (see let_block() in image_file.cc): asking it
    // again would go on for as long as its queue is full.
    if (error_number == EAGAIN) error_number = finish_now(slots_[slot]);
    completions.push_back({slots_[slot].tag, error_number});
    free_slots_.push_back(slot);
    --in_flight_;
    if (!waiting_.empty()) {
      prepare(waiting_.front());
      waiting_.pop_front();
      is_kick_needed = true;
    }
  }
  if (is_kick_needed) kick();
}

void IoRing::wait() {
  CHECK(in_flight_ > 0);
  if (!done_.empty()) return;
  int result = 0;
  do {
    result = io_uring_submit_and_wait(&ring_, 1);
  } while (result == -EINTR);
  CHECK(result >= 0 || result == -EAGAIN || result == -EBUSY);
}

}  // namespace blockdev
