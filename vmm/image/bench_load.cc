#include "vmm/image/bench_load.h"

#include <poll.h>

#include <cerrno>
#include <cstring>

namespace image {

using blockdev::BlockOp;
using blockdev::BlockRequest;
using blockdev::BlockStatus;

Result<std::unique_ptr<BenchLoad>> BenchLoad::create(blockdev::BlockQueue& queue, u64 disk_bytes,
                                                     const BenchPlan& plan) {
  base::Mapping memory = TRY(base::Mapping::anonymous(plan.depth * plan.request_bytes));
  return std::unique_ptr<BenchLoad>(new BenchLoad(queue, disk_bytes, plan, std::move(memory)));
}

BenchLoad::BenchLoad(blockdev::BlockQueue& queue, u64 disk_bytes, const BenchPlan& plan,
                     base::Mapping memory)
    : queue_(queue),
      disk_bytes_(disk_bytes),
      plan_(plan),
      memory_(std::move(memory)),
      buffers_(plan.depth),
      requests_(plan.depth),
      left_(plan.count),
      offset_(plan.offset_bytes),
      flushed_at_(plan.count) {
  std::memset(memory_.data(), plan.pattern, memory_.size_bytes());
  for (u32 i = 0; i < plan.depth; ++i) {
    buffers_[i] = {memory_.data() + i * plan.request_bytes, plan.request_bytes};
    requests_[i] = {.op = plan.op,
                    .length_bytes = plan.request_bytes,
                    .buffers = {&buffers_[i], 1},
                    .client = this};
    idle_.push_back(&requests_[i]);
  }
  flush_ = {.op = BlockOp::flush, .buffers = {}, .client = this};
}

Result<void> BenchLoad::run() {
  submit_more();
  while (queue_.in_flight_count() > 0) {
    pollfd ready{.fd = queue_.completion_fd(), .events = POLLIN, .revents = 0};
    if (::poll(&ready, 1, -1) < 0 && errno != EINTR) return errno_error("wait for the disk");
    queue_.poll();
    submit_more();
  }
  if (status_ == BlockStatus::ok) return {};
  return make_error(ErrorKind::failed, "a request failed: {}",
                    status_ == BlockStatus::no_space    ? "no space left"
                    : status_ == BlockStatus::read_only ? "the disk is read-only"
                                                        : "I/O error");
}

// A disk that answers at once calls on_done() from inside submit(): the loop goes on, not deeper.
void BenchLoad::submit_more() {
  if (is_submitting_) return;
  is_submitting_ = true;
  while (left_ > 0 && status_ == BlockStatus::ok && !idle_.empty()) {
    if (is_flush_due()) {
      if (is_flushing_) break;
      if (plan_.flush_drains == FlushDrains::yes && idle_.size() < requests_.size()) break;
      submit_flush();
      continue;
    }
    if (is_flushing_ && plan_.flush_drains == FlushDrains::yes) break;
    BlockRequest& request = *idle_.back();
    idle_.pop_back();
    submit_next(request);
  }
  is_submitting_ = false;
}

void BenchLoad::submit_next(BlockRequest& request) {
  if (disk_bytes_ - offset_ < plan_.request_bytes) offset_ = 0;
  request.offset_bytes = offset_;
  offset_ = (offset_ + plan_.step_bytes) % disk_bytes_;
  --left_;
  queue_.submit(request);
}

bool BenchLoad::is_flush_due() const {
  return plan_.flush_interval != 0 && left_ % plan_.flush_interval == 0 && left_ != flushed_at_;
}

void BenchLoad::submit_flush() {
  flushed_at_ = left_;
  is_flushing_ = true;
  queue_.submit(flush_);
}

void BenchLoad::on_done(BlockRequest& request, BlockStatus status) {
  if (status_ == BlockStatus::ok) status_ = status;
  if (&request == &flush_) {
    is_flushing_ = false;
  } else {
    idle_.push_back(&request);
  }
  submit_more();
}

}  // namespace image
