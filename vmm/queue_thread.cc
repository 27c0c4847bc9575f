#include "vmm/queue_thread.h"

#include <pthread.h>
#include <sys/epoll.h>

#include <array>

#include "vmm/base/check.h"

namespace vmm {
namespace {

enum class Source : u32 { kick, completion, stop };

Result<void> add_source(const base::Fd& epoll, int fd, Source source) {
  epoll_event event{.events = EPOLLIN, .data = {.u32 = static_cast<u32>(source)}};
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0) return errno_error("epoll_ctl");
  return {};
}

}  // namespace

Result<std::unique_ptr<QueueThread>> QueueThread::start(devices::QueueWorker& worker,
                                                        const base::EventFd& kick,
                                                        std::string name) {
  base::EventFd stop = TRY(base::EventFd::create());
  base::Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) return errno_error("epoll_create");
  TRY(add_source(epoll, kick.fd().get(), Source::kick));
  TRY(add_source(epoll, stop.fd().get(), Source::stop));
  if (worker.completion_fd() >= 0) {
    TRY(add_source(epoll, worker.completion_fd(), Source::completion));
  }
  auto thread = std::unique_ptr<QueueThread>(new QueueThread(worker, kick, std::move(stop)));
  thread->thread_ = std::thread([self = thread.get(), fd = std::move(epoll)] { self->loop(fd); });
  ::pthread_setname_np(thread->thread_.native_handle(), name.substr(0, 15).c_str());
  return thread;
}

QueueThread::QueueThread(devices::QueueWorker& worker, const base::EventFd& kick,
                         base::EventFd stop)
    : worker_(worker), kick_(kick), stop_(std::move(stop)) {}

QueueThread::~QueueThread() {
  stop_.signal();
  thread_.join();
}

void QueueThread::loop(const base::Fd& epoll) {
  for (;;) {
    std::array<epoll_event, 3> events;
    const int count = ::epoll_wait(epoll.get(), events.data(), events.size(), -1);
    if (count < 0 && errno == EINTR) continue;
    CHECK(count > 0);
    for (int i = 0; i < count; ++i) {
      const auto source = static_cast<Source>(events[static_cast<std::size_t>(i)].data.u32);
      if (source == Source::stop) return;
      // Taken before the ring is looked at: a kick that comes later is seen by the next wait.
      if (source == Source::kick) kick_.take();
    }
    worker_.serve();
  }
}

Result<std::unique_ptr<QueueKicks>> QueueKicks::create(u32 queue_count) {
  auto kicks = std::make_unique<QueueKicks>();
  for (u32 i = 0; i < queue_count; ++i) {
    kicks->events_.push_back(TRY(base::EventFd::create()));
  }
  return kicks;
}

}  // namespace vmm
