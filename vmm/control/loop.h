// Loop: the control thread's event loop. Everything a user asks for happens on it.
//
// Thread: post() and stop() from any thread; the rest from the loop's own thread.

#pragma once

#include <functional>
#include <memory>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace control {

class Loop final {
 public:
  Loop();
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Calls `work` on the loop's thread, after this returns.
  void post(std::function<void()> work);
  // Calls `ready` whenever `fd` is readable (or writable), until `ready` returns false. The fd is
  // borrowed and becomes non-blocking; call unwatch() before closing it. A file that cannot be
  // polled (a regular file, /dev/null) counts as always ready.
  void watch_readable(int fd, std::function<bool()> ready);
  void watch_writable(int fd, std::function<bool()> ready);
  // No callback for `fd` runs after this.
  void unwatch(int fd);
  void call_after_ms(u64 delay_ms, std::function<void()> work);

  void run();  // until stop()
  void stop();

  struct Impl;  // Boost.Asio, kept out of the headers: it costs every file seconds
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace control
