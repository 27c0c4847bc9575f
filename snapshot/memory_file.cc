#include "snapshot/memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "snapshot/safe_open.h"
#include "vmm/base/check.h"
#include "vmm/base/codec.h"
#include "vmm/base/ranges.h"
#include "vmm/base/wire.h"

namespace snapshot {
namespace {

constexpr u64 kChunkPages = kChunkBytes / base::kPageBytes;
constexpr u32 kSumsMagic = 0x4d535351;  // "QSSM"
constexpr u32 kSumsVersion = 1;

// Followed by one XXH3-128 (canonical, 16 bytes) for each chunk, the last one perhaps short.
struct SumsHeader {
  le32 magic;        //  0
  le32 version;      //  4
  le64 ram_bytes;    //  8
  le64 chunk_bytes;  // 16
};
static_assert(base::WireType<SumsHeader> && sizeof(SumsHeader) == 24);

bool is_zero(const u8* page) {
  return page[0] == 0 && std::memcmp(page, page + 1, base::kPageBytes - 1) == 0;
}

// Chunks come one after the other; a chunk's sum covers its zeros too.
class ChunkSums final {
 public:
  explicit ChunkSums(u64 ram_bytes) : state_(XXH3_createState(), XXH3_freeState) {
    const SumsHeader header{kSumsMagic, kSumsVersion, ram_bytes, kChunkBytes};
    const u8* const bytes = reinterpret_cast<const u8*>(&header);
    out_.assign(bytes, bytes + sizeof header);
    XXH3_128bits_reset(state_.get());
  }

  void add(const u8* data, u64 bytes) { XXH3_128bits_update(state_.get(), data, bytes); }
  void add_zeros(u64 page_count) {
    alignas(64) static constexpr u8 kZeros[base::kPageBytes] = {};
    for (u64 i = 0; i < page_count; ++i) add(kZeros, sizeof kZeros);
  }
  void end_chunk() {
    append(XXH3_128bits_digest(state_.get()));
    XXH3_128bits_reset(state_.get());
  }
  // Most of a young guest's memory: its sum is computed once.
  void zero_chunk(u64 page_count) {
    if (page_count != kChunkPages) {
      add_zeros(page_count);
      return end_chunk();
    }
    if (!zero_known_) {
      add_zeros(page_count);
      zero_sum_ = XXH3_128bits_digest(state_.get());
      XXH3_128bits_reset(state_.get());
      zero_known_ = true;
    }
    append(zero_sum_);
  }
  const base::Bytes& bytes() const { return out_; }

 private:
  void append(XXH128_hash_t hash) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, hash);
    out_.insert(out_.end(), canonical.digest, canonical.digest + sizeof canonical.digest);
  }

  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
  base::Bytes out_;
  XXH128_hash_t zero_sum_{};
  bool zero_known_ = false;
};

// Writes the pages of `piece` that are not zero, in runs, and adds all to the sums.
Result<u64> write_piece(const base::Fd& file, u64 first_page, const MemoryImage::Piece& piece,
                        ChunkSums& sums) {
  u64 written = 0;
  u64 run_start = 0;
  u64 run_pages = 0;
  const auto end_run = [&]() -> Result<void> {
    if (run_pages == 0) return {};
    TRY(base::write_exactly(
        file, {piece.data + run_start * base::kPageBytes, run_pages * base::kPageBytes},
        (first_page + run_start) * base::kPageBytes));
    written += run_pages * base::kPageBytes;
    run_pages = 0;
    return {};
  };
  for (u64 i = 0; i < piece.page_count; ++i) {
    if (is_zero(piece.data + i * base::kPageBytes)) {
      TRY(end_run());
    } else {
      if (run_pages == 0) run_start = i;
      ++run_pages;
    }
  }
  TRY(end_run());
  sums.add(piece.data, piece.page_count * base::kPageBytes);
  return written;
}

Result<u64> write_chunk(const base::Fd& file, const MemoryImage& image, u64 first, u64 count,
                        ChunkSums& sums) {
  MemoryImage::Piece piece = image.piece(first, count);
  if (piece.data == nullptr && piece.page_count == count) {
    sums.zero_chunk(count);
    return u64{0};
  }
  u64 written = 0;
  for (u64 done = 0; done < count; done += piece.page_count) {
    piece = image.piece(first + done, count - done);
    if (piece.data == nullptr) {
      sums.add_zeros(piece.page_count);
    } else {
      written += TRY(write_piece(file, first + done, piece, sums));
    }
  }
  sums.end_chunk();
  return written;
}

// The file's pages are its own: `allocated` counts what was written, not what a file system adds.
Result<u64> write_pages(const base::Fd& file, const MemoryImage& image, ChunkSums& sums) {
  if (::ftruncate(file.get(), static_cast<off_t>(image.size_bytes())) != 0) {
    return errno_error("set the size of the memory file to {}", image.size_bytes());
  }
  u64 written = 0;
  for (u64 first = 0; first < image.page_count(); first += kChunkPages) {
    const u64 count = std::min(kChunkPages, image.page_count() - first);
    written += TRY(write_chunk(file, image, first, count, sums));
  }
  TRY(base::sync_file(file));
  return written;
}

Result<MemoryLayer> write_both(const base::Fd& directory, const MemoryImage& image) {
  constexpr int kCreate = O_WRONLY | O_CREAT | O_EXCL;
  const base::Fd file = TRY(base::open_file_at(directory, kMemoryFile, kCreate, 0400));
  ChunkSums sums(image.size_bytes());
  const u64 written = TRY_CONTEXT(write_pages(file, image, sums), "write memory file");
  const base::Fd sums_file = TRY(base::open_file_at(directory, kMemorySumsFile, kCreate, 0400));
  TRY_CONTEXT(base::write_exactly(sums_file, sums.bytes(), 0), "write memory checksums");
  TRY_CONTEXT(base::sync_file(sums_file), "write memory checksums");
  return MemoryLayer{kMemoryFile,     image.size_bytes(),  written,
                     kMemorySumsFile, sums.bytes().size(), Checksum::of(sums.bytes())};
}

Result<base::Bytes> read_sums(const base::Fd& directory, const MemoryLayer& layer) {
  const u64 chunk_count = base::divide_up(layer.size_bytes, kChunkBytes);
  const u64 expected_bytes = sizeof(SumsHeader) + chunk_count * sizeof(XXH128_canonical_t);
  if (layer.sums_bytes != expected_bytes) {
    return make_error(ErrorKind::corrupt, "\"{}\" has {} bytes, needs {}", layer.sums_file,
                      layer.sums_bytes, expected_bytes);
  }
  const base::Fd file = TRY(open_sized_file(directory, layer.sums_file, layer.sums_bytes));
  base::Bytes bytes(layer.sums_bytes);
  TRY_CONTEXT(base::read_exactly(file, bytes, 0), layer.sums_file);
  if (Checksum::of(bytes) != layer.sums_checksum) {
    return make_error(ErrorKind::corrupt, "\"{}\": checksum does not match the manifest",
                      layer.sums_file);
  }
  SumsHeader header;
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != kSumsMagic || header.version != kSumsVersion ||
      header.ram_bytes != layer.size_bytes || header.chunk_bytes != kChunkBytes) {
    return make_error(ErrorKind::corrupt, "\"{}\": header does not fit the manifest",
                      layer.sums_file);
  }
  return bytes;
}

}  // namespace

Result<MemoryLayer> write_memory_file(const base::Fd& directory, const MemoryImage& image) {
  Result<MemoryLayer> layer = write_both(directory, image);
  if (!layer && layer.error().kind() != ErrorKind::exists) {
    ::unlinkat(directory.get(), kMemoryFile, 0);
    ::unlinkat(directory.get(), kMemorySumsFile, 0);
  }
  return layer;
}

Result<base::Fd> open_memory_file(const base::Fd& directory, const MemoryLayer& layer) {
  return open_sized_file(directory, layer.file, layer.size_bytes);
}

Result<std::vector<memory::FilePart>> data_parts(const base::Fd& directory,
                                                 const MemoryLayer& layer) {
  const base::Bytes sums = TRY(read_sums(directory, layer));
  ChunkSums zeros(kChunkBytes);
  zeros.zero_chunk(kChunkPages);
  const std::span<const u8> zero_sum = std::span(zeros.bytes()).subspan(sizeof(SumsHeader));
  std::vector<memory::FilePart> parts;
  for (u64 offset = 0; offset < layer.size_bytes; offset += kChunkBytes) {
    const u64 at = sizeof(SumsHeader) + offset / kChunkBytes * zero_sum.size();
    if (std::memcmp(&sums[at], zero_sum.data(), zero_sum.size()) == 0) continue;
    const u64 bytes = std::min(kChunkBytes, layer.size_bytes - offset);
    const bool goes_on =
        !parts.empty() && parts.back().offset + parts.back().length_bytes == offset;
    if (goes_on) {
      parts.back().length_bytes += bytes;
    } else {
      parts.push_back({offset, bytes});
    }
  }
  return parts;
}

Result<void> verify_memory_file(const base::Fd& directory, const MemoryLayer& layer) {
  const base::Bytes expected = TRY(read_sums(directory, layer));
  const base::Fd file = TRY(open_memory_file(directory, layer));
  // By pread and not by mmap: a file that rots or shrinks meanwhile is an Error, not a SIGBUS.
  base::Bytes chunk(std::min(kChunkBytes, layer.size_bytes));
  const u8* sum = expected.data() + sizeof(SumsHeader);
  for (u64 offset = 0; offset < layer.size_bytes; offset += kChunkBytes) {
    const u64 bytes = std::min(kChunkBytes, layer.size_bytes - offset);
    TRY_CONTEXT(base::read_exactly(file, {chunk.data(), bytes}, offset), layer.file);
    const Checksum found = Checksum::of(std::span<const u8>(chunk.data(), bytes));
    if (std::memcmp(found.bytes.data(), sum, found.bytes.size()) != 0) {
      return make_error(ErrorKind::corrupt,
                        "\"{}\": chunk {} (bytes {} to {}) does not match its checksum", layer.file,
                        offset / kChunkBytes, offset, offset + bytes - 1);
    }
    sum += found.bytes.size();
  }
  return {};
}

}  // namespace snapshot
