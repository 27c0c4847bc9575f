// Hostile qcow2 images: open, then read all over. Nothing may crash, hang, or take memory that the
// input does not justify; what the image says is not judged.

#include <sys/mman.h>

#include <algorithm>
#include <span>
#include <vector>

#include "blockdev/qcow2_image.h"
#include "vmm/base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const u8* data, std::size_t size) {
  using namespace blockdev;
  base::Fd fd(::memfd_create("image", MFD_CLOEXEC));
  CHECK(fd);
  if (!base::write_all(fd, {data, size})) return 0;
  const auto image = Qcow2Image::create(std::move(fd));
  if (!image) return 0;
  const LayerList layers = {*image};
  const u64 disk = (*image)->size_bytes();
  std::vector<u8> buffer(70000);
  ReadScratch scratch;
  // The start, the end and some places between, each across a few clusters.
  for (u64 step = 0; step < 16; ++step) {
    const u64 offset = disk / 16 * step;
    const u64 length = std::min<u64>(buffer.size(), disk - offset);
    (void)read_layers(layers, offset, std::span(buffer).first(length), scratch).has_value();
  }
  const u64 tail = std::min<u64>(buffer.size(), disk);
  (void)read_layers(layers, disk - tail, std::span(buffer).first(tail), scratch).has_value();
  return 0;
}
