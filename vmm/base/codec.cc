#include "vmm/base/codec.h"

namespace base {

Result<std::span<const u8>> ByteReader::take(u64 count) {
  if (count > left_.size()) {
    return make_error(ErrorKind::corrupt, "needs {} bytes, {} are left", count, left_.size());
  }
  const std::span<const u8> taken = left_.first(count);
  left_ = left_.subspan(count);
  return taken;
}

void codec::append_bytes(Bytes& out, std::span<const u8> bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

}  // namespace base
