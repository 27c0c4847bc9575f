#include "blockdev/qcow2_decompress.h"

#include <zlib.h>
#include <zstd.h>

#include <memory>

namespace blockdev::qcow2 {
namespace {

Error bad_data(std::string_view what) {
  return make_error(ErrorKind::corrupt, "compressed cluster: {}", what);
}

}  // namespace

Result<void> Decompressor::run(Compression compression, std::span<const u8> in, std::span<u8> out) {
  return compression == Compression::zstd ? unzstd_cluster(in, out) : inflate_cluster(in, out);
}

Result<void> Decompressor::inflate_cluster(std::span<const u8> in, std::span<u8> out) {
  if (inflate_ == nullptr) {
    auto stream = std::make_unique<z_stream>();
    if (inflateInit2(stream.get(), -12) != Z_OK) return bad_data("no memory for zlib");
    inflate_.reset(stream.release());
  } else {
    inflateReset(inflate_.get());
  }
  z_stream& stream = *inflate_;
  stream.next_in = const_cast<u8*>(in.data());
  stream.avail_in = static_cast<uInt>(in.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  const int result = inflate(&stream, Z_FINISH);
  // Z_BUF_ERROR: the output is full before the end of the stream. All that was asked for is there.
  if (stream.avail_out == 0 &&
      (result == Z_STREAM_END || result == Z_BUF_ERROR || result == Z_OK)) {
    return {};
  }
  return bad_data("not a deflate stream of a whole cluster");
}

Result<void> Decompressor::unzstd_cluster(std::span<const u8> in, std::span<u8> out) {
  // Writers cannot need a window larger than their cluster (2 MiB); 8 MiB bounds the memory that a
  // hostile frame can ask for.
  constexpr int kMaxWindowLog = 23;
  if (zstd_ == nullptr) {
    zstd_.reset(ZSTD_createDCtx());
    if (zstd_ == nullptr) return bad_data("no memory for zstd");
    ZSTD_DCtx_setParameter(zstd_.get(), ZSTD_d_windowLogMax, kMaxWindowLog);
  } else {
    ZSTD_DCtx_reset(zstd_.get(), ZSTD_reset_session_only);
  }
  ZSTD_inBuffer input{in.data(), in.size(), 0};
  ZSTD_outBuffer output{out.data(), out.size(), 0};
  while (output.pos < output.size) {
    const std::size_t input_before = input.pos;
    const std::size_t output_before = output.pos;
    const std::size_t result = ZSTD_decompressStream(zstd_.get(), &output, &input);
    if (ZSTD_isError(result) != 0) return bad_data(ZSTD_getErrorName(result));
    if (input.pos == input_before && output.pos == output_before) {
      return bad_data("the zstd data end early");
    }
  }
  return {};
}

void Decompressor::EndInflate::operator()(z_stream_s* stream) const {
  inflateEnd(stream);
  delete stream;
}

void Decompressor::FreeZstd::operator()(ZSTD_DCtx_s* context) const { ZSTD_freeDCtx(context); }

}  // namespace blockdev::qcow2
