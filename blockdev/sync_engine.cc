#include "blockdev/sync_engine.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

namespace blockdev {
namespace {

i64 run_step(const IoTransfer& transfer) {
  const int count = static_cast<int>(transfer.next_count());
  const off_t offset = static_cast<off_t>(transfer.offset);
  i64 result = 0;
  switch (transfer.kind) {
    case IoKind::read:
      result = ::preadv(transfer.fd, transfer.next_buffers(), count, offset);
      break;
    case IoKind::write:
      result = ::pwritev(transfer.fd, transfer.next_buffers(), count, offset);
      break;
    case IoKind::sync: result = ::fdatasync(transfer.fd); break;
    case IoKind::punch:
      result = ::fallocate(transfer.fd, kPunchMode, offset, static_cast<off_t>(transfer.length));
      break;
    case IoKind::truncate: result = ::ftruncate(transfer.fd, offset); break;
  }
  return result < 0 ? -errno : result;
}

}  // namespace

int run_now(const IoOperation& operation) {
  IoTransfer transfer;
  transfer.start(operation);
  return finish_now(transfer);
}

int finish_now(IoTransfer& transfer) {
  int error_number = 0;
  if (transfer.is_done()) return 0;
  while (transfer.take_result(run_step(transfer), error_number) == IoTransfer::Step::again) {
  }
  return error_number;
}

Result<std::unique_ptr<SyncEngine>> SyncEngine::create() {
  return std::unique_ptr<SyncEngine>(new SyncEngine(TRY(base::EventFd::create())));
}

void SyncEngine::submit(const IoOperation& operation) {
  done_.push_back({operation.tag, run_now(operation)});
  done_event_.signal();
}

void SyncEngine::reap(std::vector<IoCompletion>& completions) {
  if (done_.empty()) return;
  done_event_.take();
  completions.insert(completions.end(), done_.begin(), done_.end());
  done_.clear();
}

}  // namespace blockdev
