#include "tests/fuzz/virtio_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const u8* data, std::size_t size) {
  test::run_virtio_sequence({data, size});
  return 0;
}
