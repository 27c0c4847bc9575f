#include "blockdev/nbdkit/export.h"

#include "vmm/base/log.h"

namespace blockdev::nbd {
namespace {

class Waiter final : public BlockClient {
 public:
  void on_done(BlockRequest&, BlockStatus status) override { status_ = status; }
  BlockStatus status() const { return status_; }

 private:
  BlockStatus status_ = BlockStatus::io_error;
};

}  // namespace

Result<std::unique_ptr<Export>> Export::open(const ExportOptions& options) {
  const DiskSpec spec = TRY(parse_disk_spec(options.disk));
  std::unique_ptr<Disk> disk = options.layers.empty()
                                   ? TRY(open_disk(spec, {}))
                                   : TRY(open_disk_with_layers(spec, options.layers, {}));
  for (const std::string& warning : disk->warnings) {
    base::log(base::LogLevel::warning, "{}", warning);
  }
  return std::unique_ptr<Export>(new Export(std::move(disk)));
}

BlockStatus Export::read(u64 offset, u64 length, void* to) {
  const iovec buffer{to, length};
  return run({.op = BlockOp::read,
              .offset_bytes = offset,
              .length_bytes = length,
              .buffers = {&buffer, 1}});
}

BlockStatus Export::write(u64 offset, u64 length, const void* from) {
  const iovec buffer{const_cast<void*>(from), length};  // an iovec cannot say that it is only read
  return run({.op = BlockOp::write,
              .offset_bytes = offset,
              .length_bytes = length,
              .buffers = {&buffer, 1}});
}

BlockStatus Export::discard(u64 offset, u64 length) {
  return run({.op = BlockOp::discard,
              .unmap = Unmap::yes,
              .offset_bytes = offset,
              .length_bytes = length,
              .buffers = {}});
}

BlockStatus Export::write_zeroes(u64 offset, u64 length, Unmap unmap) {
  return run({.op = BlockOp::write_zeroes,
              .unmap = unmap,
              .offset_bytes = offset,
              .length_bytes = length,
              .buffers = {}});
}

BlockStatus Export::flush() { return run({.op = BlockOp::flush, .buffers = {}}); }

BlockStatus Export::run(BlockRequest request) {
  std::unique_ptr<BlockQueue> queue = take_queue();
  if (queue == nullptr) return BlockStatus::io_error;
  Waiter waiter;
  request.client = &waiter;
  queue->submit(request);
  queue->drain();
  put_back(std::move(queue));
  return waiter.status();
}

std::unique_ptr<BlockQueue> Export::take_queue() {
  {
    const base::MutexLock lock(mutex_);
    if (!idle_.empty()) {
      // The one that was used last: its ring and its buffers are in the cache.
      std::unique_ptr<BlockQueue> queue = std::move(idle_.back());
      idle_.pop_back();
      return queue;
    }
  }
  Result<std::unique_ptr<BlockQueue>> queue = disk_->backend->open_queue();
  if (queue) return std::move(*queue);
  base::log(base::LogLevel::error, "{}", queue.error().message());
  return nullptr;
}

void Export::put_back(std::unique_ptr<BlockQueue> queue) {
  const base::MutexLock lock(mutex_);
  idle_.push_back(std::move(queue));
}

}  // namespace blockdev::nbd
