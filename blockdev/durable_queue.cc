#include "blockdev/durable_queue.h"

#include <poll.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <utility>

#include "vmm/base/check.h"
#include "vmm/base/mutex.h"
#include "vmm/base/ranges.h"

namespace blockdev {
namespace {

constexpr u64 kZeroBytes = 64 * base::kKiB;
constexpr u64 kMaxZeroWrite = 1 * base::kMiB;
alignas(4096) constinit std::array<u8, kZeroBytes> zero_bytes{};  // never written

WriteKind write_kind(const BlockRequest& request) {
  switch (request.op) {
    case BlockOp::discard: return WriteKind::discard;
    case BlockOp::write_zeroes:
      return request.unmap == Unmap::yes ? WriteKind::zeroes_unmap : WriteKind::zeroes;
    default: return WriteKind::data;
  }
}

bool is_not_supported(int error_number) {
  // A block device wants whole blocks of its own.
  return error_number == EOPNOTSUPP || error_number == ENOSYS || error_number == EINVAL;
}

void watch(const base::Fd& either, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  // An engine of a test may have no descriptor.
  if (fd >= 0) ::epoll_ctl(either.get(), EPOLL_CTL_ADD, fd, &event);
}

}  // namespace

// What other threads leave here for the queue.
class DurableQueue::Mailbox final : public Waker, public FlushClient {
 public:
  struct Flushed {
    BlockRequest* request;
    int error_number;
  };

  explicit Mailbox(base::EventFd event) : event_(std::move(event)) {}

  void wake() override {
    base::MutexLock lock(mutex_);
    if (!has_mail_.exchange(true)) event_.signal();
  }
  void on_flushed(BlockRequest& request, int error_number) override {
    base::MutexLock lock(mutex_);
    flushed_.push_back({&request, error_number});
    if (!has_mail_.exchange(true)) event_.signal();
  }

  bool has_mail() const { return has_mail_.load(std::memory_order_acquire); }
  // Both vectors keep their memory.
  const std::vector<Flushed>& take() {
    taken_.clear();
    base::MutexLock lock(mutex_);
    has_mail_.store(false);
    event_.take();
    taken_.swap(flushed_);
    return taken_;
  }
  int fd() const { return event_.fd().get(); }  // readable while there is mail

 private:
  const base::EventFd event_;
  std::atomic<bool> has_mail_{false};
  base::Mutex mutex_;
  std::vector<Flushed> flushed_ GUARDED_BY(mutex_);
  std::vector<Flushed> taken_;  // the queue's thread alone
};

Result<std::unique_ptr<DurableQueue>> DurableQueue::create(const DurableStack& stack,
                                                           Flusher& flusher, Executor& executor,
                                                           std::unique_ptr<IoEngine> engine) {
  auto mailbox = std::make_shared<Mailbox>(TRY(base::EventFd::create()));
  base::Fd either(::epoll_create1(EPOLL_CLOEXEC));
  if (!either) return errno_error("epoll");
  watch(either, mailbox->fd());
  watch(either, engine->completion_fd());
  return std::unique_ptr<DurableQueue>(new DurableQueue(stack, flusher, executor, std::move(engine),
                                                        std::move(mailbox), std::move(either)));
}

DurableQueue::DurableQueue(const DurableStack& stack, Flusher& flusher, Executor& executor,
                           std::unique_ptr<IoEngine> engine, std::shared_ptr<Mailbox> mailbox,
                           base::Fd either)
    : stack_(stack),
      flusher_(flusher),
      executor_(executor),
      engine_(std::move(engine)),
      mailbox_(std::move(mailbox)),
      either_(std::move(either)),
      reader_(stack_.layers, *engine_, deliveries_) {}

DurableQueue::~DurableQueue() { CHECK(in_flight_count() == 0); }

void DurableQueue::submit(BlockRequest& request) {
  CHECK(base::contains(stack_.layers.size_bytes, request.offset_bytes, request.length_bytes));
  CHECK(base::is_aligned(request.offset_bytes | request.length_bytes, kSectorBytes));
  deliveries_.begin();
  switch (request.op) {
    case BlockOp::read: reader_.submit(request); break;
    case BlockOp::flush: flusher_.submit(request, *mailbox_); break;
    case BlockOp::write:
    case BlockOp::discard:
    case BlockOp::write_zeroes: hand_out(take_write(request)); break;
  }
  if (std::exchange(has_submitted_, false)) engine_->kick();
  deliveries_.deliver();
}

u32 DurableQueue::take_write(BlockRequest& request) {
  if (free_writes_.empty()) {
    free_writes_.push_back(static_cast<u32>(writes_.size()));
    writes_.emplace_back();
  }
  const u32 index = free_writes_.back();
  free_writes_.pop_back();
  writes_[index] = {.request = &request,
                    .kind = write_kind(request),
                    .left = {request.offset_bytes, request.length_bytes},
                    .from = IovecCursor(request.buffers)};
  return index;
}

u32 DurableQueue::take_step(u32 write) {
  if (free_steps_.empty()) {
    free_steps_.push_back(static_cast<u32>(steps_.size()));
    steps_.emplace_back();
  }
  const u32 index = free_steps_.back();
  free_steps_.pop_back();
  steps_[index].write = write;
  steps_[index].error_number = 0;
  ++steps_in_use_;
  return index;
}

void DurableQueue::hand_out(u32 index) {
  ++writes_[index].steps;  // it does not end from within
  bool must_wait = false;
  while (!must_wait && !writes_[index].is_handed_out()) must_wait = !hand_out_some(index);
  --writes_[index].steps;
  writes_[index].is_parked = must_wait;
  if (must_wait) parked_.push_back(index);
  finish_if_done(index);
}

bool DurableQueue::hand_out_some(u32 index) {
  if (steps_in_use_ == kMaxSteps || fill_bytes_ > kMaxFillBytes) return false;
  Write& write = writes_[index];
  const u32 step_index = take_step(index);
  Step& step = steps_[step_index];
  step.plan = stack_.top->begin_write(write.left, write.kind, step.ticket, *mailbox_);
  const WriteStep& plan = step.plan;
  const bool is_write = plan.kind == StepKind::in_place;
  const u64 length = is_write && write.kind != WriteKind::data
                         ? std::min(plan.length_bytes, kMaxZeroWrite)
                         : plan.length_bytes;
  step.range = {write.left.offset, length};
  step.from = write.from;
  if (plan.kind == StepKind::fail) write.status = plan.status;
  if (plan.kind == StepKind::fail || plan.kind == StepKind::wait ||
      plan.kind == StepKind::nothing) {
    free_steps_.push_back(step_index);
    --steps_in_use_;
    if (plan.kind == StepKind::nothing) flusher_.take_note();
    if (plan.kind == StepKind::wait) {
      flusher_.take_note();
      return false;
    }
  }
  if (plan.kind != StepKind::fail) {
    if (write.kind == WriteKind::data) write.from.skip(length);
    write.left = {write.left.offset + length, write.left.length - length};
    if (plan.kind != StepKind::nothing) {
      ++write.steps;
      carry_out(step_index);
    }
  }
  return true;
}

void DurableQueue::carry_out(u32 step) {
  switch (steps_[step].plan.kind) {
    case StepKind::in_place: write_in_place(step); break;
    case StepKind::allocate: begin_fill(step); break;
    case StepKind::punch:
    case StepKind::punch_in_place: punch(step); break;
    case StepKind::nothing:
    case StepKind::wait:
    case StepKind::fail: CHECK(false);  // no steps
  }
}

void DurableQueue::write_in_place(u32 index) {
  Step& step = steps_[index];
  slice_.clear();
  if (writes_[step.write].kind == WriteKind::data) {
    step.from.slice(step.range.length, slice_);
  } else {
    take_zeros(step.range.length);
  }
  run(index, {IoKind::write, stack_.top->fd(), step.plan.file_offset, slice_, 0});
}

void DurableQueue::take_zeros(u64 length) {
  while (length > 0) {
    const u64 piece = std::min(length, kZeroBytes);
    slice_.push_back({zero_bytes.data(), piece});
    length -= piece;
  }
}

void DurableQueue::begin_fill(u32 index) {
  Step& step = steps_[index];
  const DiskContent content{stack_.layers.lower, stack_.layers.size_bytes};
  step.fill_bytes = step.plan.covered.length - step.range.length;
  fill_bytes_ += step.fill_bytes;
  reads_.clear();
  const Result<void> collected =
      step.fill.collect(content, step.plan, step.range, scratch_, reads_);
  if (!collected) {
    if (log_limit_.allows()) {
      base::log(base::LogLevel::error, "disk: write at {:#x} failed: {}", step.range.offset,
                collected.error().message());
    }
    step.error_number = EIO;
    end_step(index);
    return;
  }
  ++step.fill_reads;  // it does not go on from within
  for (const WriteFill::FileRead& read : reads_) {
    const iovec buffer{read.to.data(), read.to.size()};
    ++step.fill_reads;
    run(index, {IoKind::read, read.extent.fd, read.extent.file_offset, {&buffer, 1}, 0});
  }
  if (--step.fill_reads == 0) write_filled(index);
}

void DurableQueue::write_filled(u32 index) {
  Step& step = steps_[index];
  if (step.error_number != 0) {
    end_step(index);
    return;
  }
  const std::span<u8> head = step.fill.head();
  const std::span<u8> tail = step.fill.tail();
  slice_.clear();
  if (!head.empty()) slice_.push_back({head.data(), head.size()});
  if (writes_[step.write].kind == WriteKind::data) {
    step.from.consume(step.range.length, [&](u8* data, u64 size) {
      slice_.push_back({data, size});
    });
  } else {
    take_zeros(step.range.length);
  }
  if (!tail.empty()) slice_.push_back({tail.data(), tail.size()});
  const u64 within = step.range.offset - step.plan.covered.offset;
  run(index,
      {IoKind::write, stack_.top->fd(), step.plan.file_offset + within - head.size(), slice_, 0});
}

void DurableQueue::punch(u32 index) {
  const Step& step = steps_[index];
  run(index,
      {.kind = IoKind::punch,
       .fd = stack_.top->fd(),
       .offset = step.plan.file_offset,
       .length = step.plan.kind == StepKind::punch ? step.plan.covered.length : step.range.length});
}

void DurableQueue::run(u32 index, const IoOperation& operation) {
  if (const std::optional<int> now = engine_->try_now(operation)) {
    end_operation(index, *now);
    return;
  }
  IoOperation tagged = operation;
  tagged.tag = kStepTag + index;
  engine_->submit(tagged);
  has_submitted_ = true;
}

void DurableQueue::end_operation(u32 index, int error_number) {
  Step& step = steps_[index];
  if (step.fill_reads > 0) {
    if (error_number != 0) step.error_number = error_number;
    if (--step.fill_reads == 0) write_filled(index);
    return;
  }
  if (step.plan.kind == StepKind::punch && is_not_supported(error_number)) error_number = 0;
  if (step.plan.kind == StepKind::punch_in_place && is_not_supported(error_number)) {
    error_number = 0;
    if (writes_[step.write].kind == WriteKind::zeroes_unmap) {
      step.plan.kind = StepKind::in_place;
      write_in_place(index);
      return;
    }
  }
  if (error_number != 0) step.error_number = error_number;
  end_step(index);
}

void DurableQueue::end_step(u32 index) {
  Step& step = steps_[index];
  Write& write = writes_[step.write];
  if (step.plan.kind == StepKind::allocate || step.plan.kind == StepKind::punch) {
    stack_.top->end_write(step.ticket, step.error_number);
    flusher_.take_note();
  }
  if (step.error_number != 0) write.status = status_of(step.error_number, step.range.offset);
  if (step.plan.kind == StepKind::allocate) {
    fill_bytes_ -= step.fill_bytes;
    step.fill.shrink(256 * base::kKiB);
  }
  const u32 write_index = step.write;
  free_steps_.push_back(index);
  --steps_in_use_;
  is_retry_due_ = true;
  --write.steps;
  finish_if_done(write_index);
}

BlockStatus DurableQueue::status_of(int error_number, u64 offset) {
  if (log_limit_.allows()) {
    base::log(base::LogLevel::error, "disk: write at {:#x} failed: {}", offset,
              Error::from_errno(error_number, "image file").message());
  }
  return status_of_errno(error_number);
}

void DurableQueue::finish_if_done(u32 index) {
  const Write& write = writes_[index];
  if (write.is_parked || write.steps > 0) return;
  deliveries_.finish(*write.request, write.status);
  free_writes_.push_back(index);
}

void DurableQueue::poll() {
  if (mailbox_->has_mail()) take_mail();
  // Its descriptor may become readable after what it stands for was taken (io_ring.cc, reap()).
  // Many disks never give the engine anything: they are spared the call.
  is_engine_used_ = is_engine_used_ || engine_->in_flight_count() > 0;
  if (is_engine_used_) {
    completions_.clear();
    engine_->reap(completions_);
    for (const IoCompletion& completion : completions_) complete(completion);
    reader_.go_on();
  }
  if (std::exchange(is_retry_due_, false) && !parked_.empty()) retry_parked();
  if (std::exchange(has_submitted_, false)) engine_->kick();
  deliveries_.deliver();
}

void DurableQueue::complete(const IoCompletion& completion) {
  if (completion.tag < kStepTag) {
    reader_.complete(completion);
  } else {
    end_operation(static_cast<u32>(completion.tag - kStepTag), completion.error_number);
  }
}

void DurableQueue::retry_parked() {
  retried_.clear();
  retried_.swap(parked_);
  for (const u32 index : retried_) hand_out(index);
}

void DurableQueue::take_mail() {
  is_retry_due_ = true;
  for (const Mailbox::Flushed& flushed : mailbox_->take()) {
    const BlockStatus status =
        flushed.error_number == 0 ? BlockStatus::ok : status_of(flushed.error_number, 0);
    deliveries_.finish(*flushed.request, status);
  }
}

void DurableQueue::drain() {
  CHECK(!deliveries_.is_delivering());
  while (true) {
    poll();
    if (in_flight_count() == 0) return;
    if (mailbox_->has_mail() || is_retry_due_) continue;
    if (engine_->in_flight_count() > 0) {
      engine_->wait();
    } else if (!executor_.run_one()) {
      pollfd event{.fd = mailbox_->fd(), .events = POLLIN, .revents = 0};
      ::poll(&event, 1, -1);
    }
  }
}

}  // namespace blockdev
