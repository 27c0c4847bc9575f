#include "tests/blockdev/support/faulty_engine.h"

#include <sys/epoll.h>

#include "blockdev/sync_engine.h"

namespace blockdev::test {
namespace {

void run_half(IoOperation operation) {
  if (operation.kind == IoKind::punch) operation.length = operation.length / 2 / 512 * 512;
  std::vector<iovec> buffers;
  if (operation.kind == IoKind::read || operation.kind == IoKind::write) {
    u64 total = 0;
    for (const iovec& buffer : operation.buffers) total += buffer.iov_len;
    u64 left = total / 2 / 512 * 512;  // a sector is never torn by a host that is up
    for (iovec buffer : operation.buffers) {
      buffer.iov_len = std::min<u64>(buffer.iov_len, left);
      left -= buffer.iov_len;
      buffers.push_back(buffer);
    }
    operation.buffers = buffers;
  }
  if (operation.kind != IoKind::truncate) (void)run_now(operation);
}

void watch(int epoll, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

}  // namespace

void FaultPlan::arm(const Fault& fault) {
  fault_ = fault;
  count_ = 0;
  has_struck_ = false;
  is_armed_ = true;
}

bool FaultPlan::strikes(const IoOperation& operation) {
  if (operation.kind == IoKind::read && !fault_.with_reads) return false;
  const u64 index = count_++;
  if (!is_armed_) return false;
  const bool strikes =
      fault_.duration == FaultDuration::once ? index == fault_.index : index >= fault_.index;
  if (strikes) has_struck_ = true;
  return strikes;
}

Result<std::unique_ptr<FaultyEngine>> FaultyEngine::create(std::unique_ptr<IoEngine> inner,
                                                           FaultPlan& plan) {
  base::EventFd event = TRY(base::EventFd::create());
  base::Fd both(::epoll_create1(EPOLL_CLOEXEC));
  if (!both) return errno_error("epoll");
  watch(both.get(), event.fd().get());
  watch(both.get(), inner->completion_fd());
  return std::unique_ptr<FaultyEngine>(
      new FaultyEngine(std::move(inner), plan, std::move(event), std::move(both)));
}

void FaultyEngine::submit(const IoOperation& operation) {
  if (!plan_.strikes(operation)) return inner_->submit(operation);
  if (plan_.fault().extent == FaultExtent::half) run_half(operation);
  failed_.push_back({operation.tag, plan_.fault().error_number});
  event_.signal();
}

void FaultyEngine::reap(std::vector<IoCompletion>& completions) {
  inner_->reap(completions);
  if (failed_.empty()) return;
  event_.take();
  completions.insert(completions.end(), failed_.begin(), failed_.end());
  failed_.clear();
}

void FaultyEngine::wait() {
  if (failed_.empty()) inner_->wait();
}

EngineMaker faulty_engines(EngineMaker inner, FaultPlan& plan) {
  return [inner = std::move(inner), &plan]() -> Result<std::unique_ptr<IoEngine>> {
    auto engine = TRY(inner());
    return std::unique_ptr<IoEngine>(TRY(FaultyEngine::create(std::move(engine), plan)));
  };
}

}  // namespace blockdev::test
