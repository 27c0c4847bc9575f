#include "vmm/control/loop.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <unordered_map>
#include <utility>

namespace control {
namespace {

namespace asio = boost::asio;
using WaitType = asio::posix::stream_descriptor::wait_type;

}  // namespace

struct Loop::Impl {
  // One watched descriptor with its two callbacks. Shared with the pending waits, which may complete
  // once more after unwatch(): `dropped` tells them.
  struct Watch {
    explicit Watch(asio::io_context& context) : descriptor(context) {}
    ~Watch() {
      if (descriptor.is_open()) descriptor.release();  // borrowed: never closed here
    }
    asio::posix::stream_descriptor descriptor;
    std::function<bool()> on_readable;
    std::function<bool()> on_writable;
    bool dropped = false;
  };

  // One thread runs the loop; others only post.
  asio::io_context context{1};
  asio::executor_work_guard<asio::io_context::executor_type> keep_running{context.get_executor()};
  std::unordered_map<int, std::shared_ptr<Watch>> watches;

  std::shared_ptr<Watch> watch(int fd) {
    std::shared_ptr<Watch>& slot = watches[fd];
    if (!slot) {
      slot = std::make_shared<Watch>(context);
      boost::system::error_code ignored;  // a descriptor that is not one fails at its first wait
      slot->descriptor.assign(fd, ignored);
    }
    return slot;
  }

  void wait(int fd, std::shared_ptr<Watch> watch, WaitType type) {
    asio::posix::stream_descriptor& descriptor = watch->descriptor;
    descriptor.async_wait(
        type, [this, fd, type, watch = std::move(watch)](boost::system::error_code code) {
          complete(fd, watch, type, code);
        });
  }

  void complete(int fd, const std::shared_ptr<Watch>& watch, WaitType type,
                boost::system::error_code code) {
    if (watch->dropped || code == asio::error::operation_aborted) return;
    std::function<bool()>& slot =
        type == asio::posix::stream_descriptor::wait_read ? watch->on_readable : watch->on_writable;
    std::function<bool()> ready = std::move(slot);
    slot = nullptr;
    const bool again = ready && ready();
    if (watch->dropped) return;
    // `ready` may have armed the same direction anew; that wait is already under way.
    if (again && !slot) {
      slot = std::move(ready);
      wait(fd, watch, type);
    } else if (!watch->on_readable && !watch->on_writable) {
      drop(fd);
    }
  }

  void drop(int fd) {
    const auto found = watches.find(fd);
    if (found == watches.end()) return;
    found->second->dropped = true;
    found->second->descriptor.release();
    watches.erase(found);
  }
};

Loop::Loop() : impl_(std::make_unique<Impl>()) {}
Loop::~Loop() = default;

void Loop::post(std::function<void()> work) { asio::post(impl_->context, std::move(work)); }

void Loop::watch_readable(int fd, std::function<bool()> ready) {
  const std::shared_ptr<Impl::Watch> watch = impl_->watch(fd);
  const bool waiting = static_cast<bool>(watch->on_readable);
  watch->on_readable = std::move(ready);
  if (!waiting) impl_->wait(fd, watch, asio::posix::stream_descriptor::wait_read);
}

void Loop::watch_writable(int fd, std::function<bool()> ready) {
  const std::shared_ptr<Impl::Watch> watch = impl_->watch(fd);
  const bool waiting = static_cast<bool>(watch->on_writable);
  watch->on_writable = std::move(ready);
  if (!waiting) impl_->wait(fd, watch, asio::posix::stream_descriptor::wait_write);
}

void Loop::unwatch(int fd) { impl_->drop(fd); }

void Loop::call_after_ms(u64 delay_ms, std::function<void()> work) {
  auto timer = std::make_shared<asio::steady_timer>(impl_->context);
  timer->expires_after(std::chrono::milliseconds(delay_ms));
  timer->async_wait([timer, work = std::move(work)](boost::system::error_code code) {
    if (!code) work();
  });
}

void Loop::run() { impl_->context.run(); }

void Loop::stop() { impl_->context.stop(); }

}  // namespace control
