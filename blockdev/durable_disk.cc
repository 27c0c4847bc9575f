#include "blockdev/durable_disk.h"

#include "blockdev/content_map.h"
#include "blockdev/qcow2_writer.h"
#include "blockdev/raw_writer.h"
#include "vmm/base/check.h"
#include "vmm/base/log.h"

namespace blockdev {
namespace {

Result<std::shared_ptr<WritableImage>> open_writer(ImageFile file, const LayerList& lower,
                                                   const EngineMaker& make_engine) {
  const std::string context = fmt::format("open \"{}\" for writing", file.identity.path);
  if (file.identity.format == ImageFormat::raw) {
    CHECK(lower.empty());
    return std::shared_ptr<WritableImage>(
        TRY_CONTEXT(RawWriter::create(std::move(file.fd)), context));
  }
  const auto below = lower.empty() ? Qcow2Writer::Below::nothing : Qcow2Writer::Below::layers;
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

}  // namespace

Result<std::unique_ptr<DurableDisk>> DurableDisk::create(ImageFile top, LayerList lower,
                                                         const DiskOptions& options) {
  TRY(check_layer_count(lower.size() + 1));
  std::shared_ptr<WritableImage> writer =
      TRY(open_writer(std::move(top), lower, options.make_engine));
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

// A layer below may be longer than the disk was: what it has there is not the disk's.
Result<void> DurableDisk::zero_grown(u64 old_size_bytes) {
  u64 end = 0;
  for (const LayerPointer& layer : lower_) end = std::max(end, layer->size_bytes());
  end = std::min(end, stack_.layers.size_bytes);
  if (end <= old_size_bytes) return {};
  const std::unique_ptr<BlockQueue> queue = TRY(open_queue());
  OneRequest client;
  BlockRequest request{.op = BlockOp::write_zeroes,
                       .unmap = Unmap::yes,
                       .offset_bytes = old_size_bytes,
                       .length_bytes = end - old_size_bytes,
                       .buffers = {},
                       .client = &client};
  queue->submit(request);
  queue->drain();
  if (client.status() == BlockStatus::ok) return {};
  return make_error(ErrorKind::failed, "the new part of the disk could not be zeroed");
}

Result<std::shared_ptr<WritableImage>> DurableDisk::prepare(ImageFile fresh) const {
  std::shared_ptr<WritableImage> image =
      TRY(open_writer(std::move(fresh), stack_.layers.lower, make_engine_));
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
