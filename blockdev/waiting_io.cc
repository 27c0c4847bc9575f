#include "blockdev/waiting_io.h"

namespace blockdev {

int WaitingIo::run(std::span<const IoOperation> operations) {
  base::MutexLock lock(mutex_);
  int error = 0;
  const auto take = [&](int error_number) {
    if (error_number != 0) error = error_number;
  };
  u64 pending = 0;
  for (const IoOperation& operation : operations) {
    if (const std::optional<int> now = engine_->try_now(operation)) {
      take(*now);
      continue;
    }
    engine_->submit(operation);
    ++pending;
  }
  if (pending > 0) engine_->kick();
  while (pending > 0) {
    engine_->wait();
    completions_.clear();
    engine_->reap(completions_);
    for (const IoCompletion& completion : completions_) take(completion.error_number);
    pending -= completions_.size();
  }
  return error;
}

int WaitingIo::read(int fd, u64 offset, std::span<u8> bytes) {
  const iovec buffer{bytes.data(), bytes.size()};
  return run(IoOperation{IoKind::read, fd, offset, {&buffer, 1}});
}

int WaitingIo::write(int fd, u64 offset, std::span<const u8> bytes) {
  const iovec buffer{const_cast<u8*>(bytes.data()), bytes.size()};
  return run(IoOperation{IoKind::write, fd, offset, {&buffer, 1}});
}

}  // namespace blockdev
