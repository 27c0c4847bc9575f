// UnixListener: a socket of the VM that clients connect to, on the control thread's loop.
//
// While there are no descriptors for another client it looks away for a moment: the one that waits
// would wake the loop for ever.
//
// Thread: the loop's.

#pragma once

#include <functional>
#include <memory>
#include <string>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/control/loop.h"

namespace control {

class UnixListener final : public std::enable_shared_from_this<UnixListener> {
 public:
  using OnClient = std::function<void(base::Fd)>;  // non-blocking

  // As listen_unix(). `loop` outlives it.
  static Result<std::shared_ptr<UnixListener>> create(Loop& loop, std::string path,
                                                      OnClient on_client);
  // Takes the socket away.
  ~UnixListener();

 private:
  UnixListener(Loop& loop, std::string path, OnClient on_client)
      : loop_(loop), path_(std::move(path)), on_client_(std::move(on_client)) {}

  void watch();
  bool accept_ready();

  Loop& loop_;
  const std::string path_;
  const OnClient on_client_;
  base::Fd fd_;
};

}  // namespace control
