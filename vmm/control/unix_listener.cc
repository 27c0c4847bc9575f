#include "vmm/control/unix_listener.h"

#include <unistd.h>

#include "vmm/base/log.h"
#include "vmm/control/unix_socket.h"

namespace control {
namespace {

constexpr u64 kRetryMs = 100;

}  // namespace

Result<std::shared_ptr<UnixListener>> UnixListener::create(Loop& loop, std::string path,
                                                           OnClient on_client) {
  base::Fd fd = TRY(listen_unix(path));
  const std::shared_ptr<UnixListener> listener(
      new UnixListener(loop, std::move(path), std::move(on_client)));
  listener->fd_ = std::move(fd);
  listener->watch();
  return listener;
}

UnixListener::~UnixListener() {
  loop_.unwatch(fd_.get());
  ::unlink(path_.c_str());
}

void UnixListener::watch() {
  loop_.watch_readable(fd_.get(), [this] { return accept_ready(); });
}

bool UnixListener::accept_ready() {
  for (;;) {
    Result<base::Fd> client = accept_unix(fd_);
    if (!client) {
      base::log(base::LogLevel::warning, "\"{}\": {}", path_, client.error().message());
      loop_.call_after_ms(kRetryMs, [weak = weak_from_this()] {
        if (const auto self = weak.lock()) self->watch();
      });
      return false;
    }
    if (!*client) return true;
    on_client_(std::move(*client));
  }
}

}  // namespace control
