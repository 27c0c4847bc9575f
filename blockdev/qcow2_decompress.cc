#include "blockdev/qcow2_decompress.h"

#include <zlib.h>
#include <zstd.h>

#include <memory>

namespace blockdev::qcow2 {
namespace {

Error bad_data(std::string_view what) {
  return make_error(ErrorKind::corrupt, "compressed cluster: {}", what);
}

Result<void> inflate_cluster(std::span<const u8> in, std::span<u8> out) {
  z_stream stream{};
  if (inflateInit2(&stream, -12) != Z_OK) return bad_data("no memory for zlib");
  stream.next_in = const_cast<u8*>(in.data());
  stream.avail_in = static_cast<uInt>(in.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  const int result = inflate(&stream, Z_FINISH);
  inflateEnd(&stream);
  // Z_BUF_ERROR: the output is full before the end of the stream. All that was asked for is there.
  if (stream.avail_out == 0 &&
      (result == Z_STREAM_END || result == Z_BUF_ERROR || result == Z_OK)) {
    return {};
  }
  return bad_data("not a deflate stream of a whole cluster");
}

Result<void> unzstd_cluster(std::span<const u8> in, std::span<u8> out) {
  // Writers cannot need a window larger than their cluster (2 MiB); 8 MiB bounds the memory that a
  // hostile frame can ask for.
  constexpr int kMaxWindowLog = 23;
  const std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> context(ZSTD_createDCtx(),
                                                                   ZSTD_freeDCtx);
  if (context == nullptr) return bad_data("no memory for zstd");
  ZSTD_DCtx_setParameter(context.get(), ZSTD_d_windowLogMax, kMaxWindowLog);
  ZSTD_inBuffer input{in.data(), in.size(), 0};
  ZSTD_outBuffer output{out.data(), out.size(), 0};
  while (output.pos < output.size) {
    const std::size_t input_before = input.pos;
    const std::size_t output_before = output.pos;
    const std::size_t result = ZSTD_decompressStream(context.get(), &output, &input);
    if (ZSTD_isError(result) != 0) return bad_data(ZSTD_getErrorName(result));
    if (input.pos == input_before && output.pos == output_before) {
      return bad_data("the zstd data end early");
    }
  }
  return {};
}

}  // namespace

Result<void> decompress_cluster(Compression compression, std::span<const u8> in,
                                std::span<u8> out) {
  return compression == Compression::zstd ? unzstd_cluster(in, out) : inflate_cluster(in, out);
}

}  // namespace blockdev::qcow2
