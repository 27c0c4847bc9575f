#include "tests/blockdev/support/io_log.h"

#include <sys/stat.h>

#include "vmm/base/check.h"

namespace blockdev::test {
namespace {

u64 file_of(int fd) {
  struct stat status {};
  CHECK(::fstat(fd, &status) == 0);
  return status.st_ino;
}

}  // namespace

u64 IoLog::begin(const IoOperation& operation) {
  if (operation.kind == IoKind::read) return kNotLogged;
  LoggedOperation logged;
  logged.kind = operation.kind;
  logged.file = file_of(operation.fd);
  logged.offset = operation.offset;
  logged.length = operation.length;
  if (operation.kind == IoKind::write) {
    for (const iovec& piece : operation.buffers) {
      const u8* const bytes = static_cast<const u8*>(piece.iov_base);
      logged.data.insert(logged.data.end(), bytes, bytes + piece.iov_len);
    }
  }
  const base::MutexLock lock(mutex_);
  logged.submitted = timeline_.next();
  operations_.push_back(std::move(logged));
  return operations_.size() - 1;
}

void IoLog::end(u64 index, int error_number) {
  if (index == kNotLogged) return;
  const base::MutexLock lock(mutex_);
  operations_[index].done = timeline_.next();
  operations_[index].error_number = error_number;
}

std::vector<LoggedOperation> IoLog::operations() const {
  const base::MutexLock lock(mutex_);
  return operations_;
}

void RecordingEngine::submit(const IoOperation& operation) {
  if (free_slots_.empty()) {
    free_slots_.push_back(slots_.size());
    slots_.push_back({});
  }
  const u64 slot = free_slots_.back();
  free_slots_.pop_back();
  slots_[slot] = {operation.tag, log_.begin(operation)};
  IoOperation tagged = operation;
  tagged.tag = slot;
  inner_->submit(tagged);
}

void RecordingEngine::reap(std::vector<IoCompletion>& completions) {
  reaped_.clear();
  inner_->reap(reaped_);
  for (const IoCompletion& completion : reaped_) {
    const Slot slot = slots_[completion.tag];
    free_slots_.push_back(completion.tag);
    log_.end(slot.log_index, completion.error_number);
    completions.push_back({slot.tag, completion.error_number});
  }
}

EngineMaker recording_engines(EngineMaker inner, IoLog& log) {
  return [inner = std::move(inner), &log]() -> Result<std::unique_ptr<IoEngine>> {
    return std::unique_ptr<IoEngine>(std::make_unique<RecordingEngine>(TRY(inner()), log));
  };
}

}  // namespace blockdev::test
