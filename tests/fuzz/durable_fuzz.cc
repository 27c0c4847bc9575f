// Hostile qcow2 images, written: open, read, write, zero, discard, flush, close, check. Nothing may
// crash or hang, and an image that checked clean must do so afterwards.
//
// The last 64 bytes of the input are the requests, four bytes each; all of it is the image, so that
// any image is a seed.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <span>

#include "blockdev/disk.h"
#include "blockdev/executor.h"
#include "blockdev/qcow2_check.h"
#include "blockdev/sync_engine.h"
#include "vmm/base/check.h"

namespace {

using namespace blockdev;

class Client final : public BlockClient {
 public:
  void on_done(BlockRequest&, BlockStatus) override { ++done; }
  u32 done = 0;
};

Result<std::unique_ptr<IoEngine>> make_engine() {
  return std::unique_ptr<IoEngine>(TRY(SyncEngine::create()));
}

bool is_clean(const base::Fd& fd) {
  const auto report = qcow2::check_image(fd);
  return report && report->corruptions == 0 && report->check_errors == 0;
}

void make_request(BlockQueue& queue, u64 disk_bytes, std::span<const u8, 4> from) {
  constexpr BlockOp kOps[] = {BlockOp::write, BlockOp::read,         BlockOp::write,
                              BlockOp::flush, BlockOp::write_zeroes, BlockOp::discard};
  Client client;
  BlockRequest request;
  request.op = kOps[from[0] % std::size(kOps)];
  request.unmap = from[0] >= 128 ? Unmap::yes : Unmap::no;
  request.client = &client;
  std::vector<u8> data;
  iovec buffer{};
  if (request.op != BlockOp::flush) {
    const u64 sectors = disk_bytes / kSectorBytes;
    const u64 first = std::min(sectors / 256 * from[1] + from[2], sectors - 1);
    request.offset_bytes = first * kSectorBytes;
    request.length_bytes = std::min<u64>(1 + from[3], sectors - first) * kSectorBytes;
    data.assign(request.length_bytes, from[3]);
    buffer = {data.data(), data.size()};
    if (request.op == BlockOp::read || request.op == BlockOp::write) {
      request.buffers = {&buffer, 1};
    }
  }
  queue.submit(request);
  queue.drain();
  CHECK(client.done == 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const u8* data, std::size_t size) {
  constexpr u64 kRequestBytes = 64;
  if (size < kRequestBytes) return 0;
  const base::Fd fd(::memfd_create("image", MFD_CLOEXEC));
  CHECK(fd);
  if (!base::write_all(fd, {data, size})) return 0;
  const bool was_clean = is_clean(fd);
  {
    DiskSpec spec;
    spec.path = fmt::format("/proc/self/fd/{}", fd.get());
    spec.format = ImageFormat::qcow2;
    spec.mode = DiskMode::persist;
    DiskOptions options;
    options.executor = std::make_shared<ManualExecutor>();
    options.make_engine = make_engine;
    const auto disk = open_disk(spec, options);
    if (!disk) return 0;
    const auto queue = (*disk)->backend->open_queue().value();
    for (u64 at = size - kRequestBytes; at < size; at += 4) {
      make_request(*queue, (*disk)->backend->size_bytes(), std::span<const u8, 4>(data + at, 4));
    }
  }
  CHECK(!was_clean || is_clean(fd));
  return 0;
}
