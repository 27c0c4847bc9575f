#include "snapshot/checksum.h"

#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <vector>

namespace snapshot {
namespace {

constexpr std::string_view kDigestPrefix = "xxh3-128:";
constexpr u64 kReadBytes = base::kMiB;

Checksum from_hash(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  Checksum sum;
  static_assert(sizeof canonical.digest == sizeof sum.bytes);
  std::copy_n(canonical.digest, sum.bytes.size(), sum.bytes.begin());
  return sum;
}

}  // namespace

Checksum Checksum::of(std::span<const u8> bytes) {
  return from_hash(XXH3_128bits(bytes.data(), bytes.size()));
}

Checksum Checksum::of(std::string_view text) {
  return from_hash(XXH3_128bits(text.data(), text.size()));
}

Result<Checksum> Checksum::parse(std::string_view text) {
  const auto refuse = [&] {
    return make_error(ErrorKind::corrupt, "\"{}\" is not a checksum", text.substr(0, 64));
  };
  if (text.size() != kDigestPrefix.size() + 32 || !text.starts_with(kDigestPrefix)) return refuse();
  Checksum sum;
  for (std::size_t i = 0; i < 32; ++i) {
    const char c = text[kDigestPrefix.size() + i];
    const bool digit = c >= '0' && c <= '9';
    if (!digit && !(c >= 'a' && c <= 'f')) return refuse();
    const int value = digit ? c - '0' : c - 'a' + 10;
    sum.bytes[i / 2] = static_cast<u8>(sum.bytes[i / 2] << 4 | value);
  }
  return sum;
}

std::string Checksum::to_string() const {
  std::string text(kDigestPrefix);
  for (const u8 byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

Result<u64> checksum64_of_file(const base::Fd& file) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  XXH3_64bits_reset(state.get());
  const u64 size = TRY(base::file_size(file));
  std::vector<u8> buffer(std::min(size, kReadBytes));
  for (u64 done = 0; done < size;) {
    const u64 count = std::min<u64>(buffer.size(), size - done);
    TRY(base::read_exactly(file, {buffer.data(), count}, done));
    XXH3_64bits_update(state.get(), buffer.data(), count);
    done += count;
  }
  return u64{XXH3_64bits_digest(state.get())};
}

}  // namespace snapshot
