#include "blockdev/durable_disk.h"

#include "blockdev/content_map.h"
#include "blockdev/qcow2_writer.h"
#include "blockdev/raw_writer.h"
#include "vmm/base/check.h"
#include "vmm/base/log.h"

namespace blockdev {
namespace {

Result<std::shared_ptr<WritableImage>> open_writer(ImageFile file, Qcow2Writer::Below below,
                                                   const EngineMaker& make_engine) {
  const std::string context = fmt::format("open \"{}\" for writing", file.identity.path);
  if (file.identity.format == ImageFormat::raw) {
    CHECK(below == Qcow2Writer::Below::nothing);
    return std::shared_ptr<WritableImage>(
        TRY_CONTEXT(RawWriter::create(std::move(file.fd)), context));
  }
  std::unique_ptr<IoEngine> engine = TRY(make_engine());
  return std::shared_ptr<WritableImage>(
      TRY_CONTEXT(Qcow2Writer::create(std::move(file.fd), below, std::move(engine)), context));
}

// Answers one request of this thread.
class OneRequest final : public BlockClient {
 public:
  void on_done(BlockRequest&, BlockStatus status) override { status_ = status; }
  BlockStatus status() const { return status_; }

 private:
  BlockStatus status_ = BlockStatus::ok;
};

Result<void> write_zeros(BlockQueue& queue, ByteRange range) {
  OneRequest client;
  BlockRequest request{.op = BlockOp::write_zeroes,
                       .unmap = Unmap::yes,
                       .offset_bytes = range.offset,
                       .length_bytes = range.length,
                       .buffers = {},
                       .client = &client};
  queue.submit(request);
  queue.drain();
  if (client.status() == BlockStatus::ok) return {};
  return make_error(ErrorKind::failed, "the new part of the disk could not be zeroed");
}

}  // namespace

Result<std::unique_ptr<DurableDisk>> DurableDisk::create(ImageFile top, LayerList lower,
                                                         const DiskOptions& options) {
  TRY(check_layer_count(lower.size() + 1));
  const auto below = lower.empty() && options.gets_backing == GetsBacking::no
                         ? Qcow2Writer::Below::nothing
                         : Qcow2Writer::Below::layers;
  std::shared_ptr<WritableImage> writer =
      TRY(open_writer(std::move(top), below, options.make_engine));
  std::unique_ptr<IoEngine> flush_engine = TRY(options.make_engine());
  std::shared_ptr<Executor> executor =
      options.executor != nullptr ? options.executor : std::make_shared<ThreadExecutor>();
  return std::unique_ptr<DurableDisk>(new DurableDisk(std::move(writer), std::move(lower),
                                                      options.make_engine, std::move(executor),
                                                      std::move(flush_engine)));
}

DurableDisk::DurableDisk(std::shared_ptr<WritableImage> top, LayerList lower,
                         EngineMaker make_engine, std::shared_ptr<Executor> executor,
                         std::unique_ptr<IoEngine> flush_engine)
    : make_engine_(std::move(make_engine)),
      executor_(std::move(executor)),
      flusher_(top, executor_, std::move(flush_engine)) {
  use(std::move(top), std::move(lower));
}

void DurableDisk::use(std::shared_ptr<WritableImage> top, LayerList lower) {
  lower_ = std::move(lower);
  stack_.layers.size_bytes = top->size_bytes();
  stack_.layers.lower = lower_;
  stack_.layers.lower.insert(stack_.layers.lower.begin(), top);
  stack_.top = std::move(top);
}

DurableDisk::~DurableDisk() {
  if (const Result<void> closed = close(); !closed) {
    base::log(base::LogLevel::error, "disk: {}", closed.error().message());
  }
}

Result<std::unique_ptr<BlockQueue>> DurableDisk::open_queue() {
  std::unique_ptr<IoEngine> engine = TRY(make_engine_());
  return std::unique_ptr<BlockQueue>(
      TRY(DurableQueue::create(stack_, flusher_, *executor_, std::move(engine))));
}

Result<std::vector<ContentRun>> DurableDisk::map_content(u64 offset_bytes, u64 length_bytes,
                                                         u64 max_runs) const {
  std::vector<ContentRun> found;
  ContentRuns runs(max_runs, found);
  TRY(map_layers(stack_.layers.lower, offset_bytes, length_bytes, runs));
  return found;
}

Result<void> DurableDisk::flush() {
  const int error = flusher_.flush_now();
  if (error != 0) return Error::from_errno(error, "flush a disk");
  return {};
}

Result<void> DurableDisk::close() {
  if (std::exchange(is_closed_, true)) return {};
  Result<void> result;
  flusher_.exclusively([&](WaitingIo& io) { result = stack_.top->close(io); });
  return result;
}

Result<void> DurableDisk::resize(u64 size_bytes) {
  const u64 old_size = stack_.layers.size_bytes;
  Result<void> result;
  flusher_.exclusively([&](WaitingIo& io) { result = stack_.top->resize(size_bytes, io); });
  if (!result) return result;
  stack_.layers.size_bytes = stack_.top->size_bytes();
  result = zero_grown(old_size);
  if (result) {
    flusher_.exclusively([&](WaitingIo& io) { result = stack_.top->record_size(io); });
  }
  if (!result) stack_.layers.size_bytes = old_size;
  return result;
}

// What lies behind the end is not the disk's: a layer below may be longer, and an image that was once
// made smaller keeps what its last cluster had, or more if a crash came in between.
Result<void> DurableDisk::zero_grown(u64 old_size_bytes) {
  const u64 size = stack_.layers.size_bytes;
  u64 lower_end = 0;
  for (const LayerPointer& layer : lower_) lower_end = std::max(lower_end, layer->size_bytes());
  const std::unique_ptr<BlockQueue> queue = TRY(open_queue());
  for (u64 at = old_size_bytes; at < size;) {
    u64 length = size - at;
    bool is_zero = false;
    if (at < lower_end) {
      length = std::min(length, lower_end - at);
    } else if (stack_.top->may_keep_what_is_behind()) {
      const Extent extent = TRY(stack_.top->map(at, length));
      length = extent.length_bytes;
      is_zero = extent.kind == ExtentKind::below || extent.kind == ExtentKind::zero;
    } else {
      is_zero = true;
    }
    if (!is_zero) TRY(write_zeros(*queue, {at, length}));
    at += length;
  }
  return {};
}

Result<std::shared_ptr<WritableImage>> DurableDisk::prepare(ImageFile fresh) const {
  std::shared_ptr<WritableImage> image =
      TRY(open_writer(std::move(fresh), Qcow2Writer::Below::layers, make_engine_));
  if (image->size_bytes() != stack_.layers.size_bytes) {
    return make_error(ErrorKind::corrupt, "a fresh layer of {} bytes for a disk of {}",
                      image->size_bytes(), stack_.layers.size_bytes);
  }
  return image;
}

std::shared_ptr<WritableImage> DurableDisk::switch_to(std::shared_ptr<WritableImage> fresh,
                                                      LayerList lower) {
  CHECK(!lower.empty() && fresh->size_bytes() == stack_.layers.size_bytes);
  std::shared_ptr<WritableImage> before = stack_.top;
  flusher_.replace_image(fresh);
  use(std::move(fresh), std::move(lower));
  return before;
}

}  // namespace blockdev
