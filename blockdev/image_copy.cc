#include "blockdev/image_copy.h"

#include <algorithm>
#include <cstring>

#include "blockdev/block_backend.h"
#include "vmm/base/ranges.h"

namespace blockdev {
namespace {

constexpr u64 kPieceBytes = ImageSink::kPieceBytes;

class Copier final {
 public:
  Copier(const CopyJob& job, ImageSink& sink)
      : job_(job),
        sink_(sink),
        source_(*job.source),
        size_bytes_(source_.size_bytes()),
        granule_bytes_(sink.granule_bytes()),
        bytes_(kPieceBytes) {
    if (job.below == nullptr) return;
    below_bytes_.resize(kPieceBytes);
    if (!job.below->empty()) below_.emplace(*job.below);
  }

  Result<void> run() {
    for (u64 offset = 0; offset < size_bytes_;) {
      if (job_.progress) job_.progress(offset, size_bytes_);
      const u64 skipped = TRY(skip_from(offset));
      if (skipped == 0) TRY(copy_piece(offset));
      offset += std::max(skipped, kPieceBytes);
    }
    if (job_.progress) job_.progress(size_bytes_, size_bytes_);
    return {};
  }

 private:
  bool is_shared(const ChainRun& run) const {
    if (run.kind == ChainRun::Kind::absent) return job_.absent == Absent::stays_below;
    if (run.kind == ChainRun::Kind::beyond) return false;
    return run.depth >= job_.shared_from || run.depth < job_.own_layers;
  }
  // Of how many bytes from `offset` on nothing has to be put: none, whole pieces, or all.
  Result<u64> skip_from(u64 offset) {
    const u64 left = size_bytes_ - offset;
    const ChainRun run = TRY(source_.run_at(offset, left));
    u64 length = is_shared(run) ? run.length_bytes : 0;
    if (length == 0 && run.reads_as_zeros() && job_.find_zeros != FindZeros::no) {
      length = std::min(run.length_bytes, TRY(unsaid_zeros(offset, left)));
    }
    return length == left ? length : base::align_down(length, kPieceBytes);
  }

  // How many bytes of zeros need not be said.
  Result<u64> unsaid_zeros(u64 offset, u64 length) {
    if (job_.below == nullptr) return sink_.wants_zeros() ? u64{0} : length;
    if (!below_ || offset >= below_->size_bytes()) return length;
    const u64 inside = std::min(length, below_->size_bytes() - offset);
    const ChainRun run = TRY(below_->run_at(offset, inside));
    return run.reads_as_zeros() ? run.length_bytes : u64{0};
  }

  Result<void> copy_piece(u64 offset) {
    const u64 length = std::min(kPieceBytes, size_bytes_ - offset);
    TRY(look_at(offset, length));
    TRY(read_data(offset, length));
    if (job_.below != nullptr) TRY(compare_with_below(offset, length));
    const bool has_something = std::ranges::any_of(granules_, [&](Granule granule) {
      return granule == Granule::data || (granule == Granule::zero && sink_.wants_zeros());
    });
    return has_something ? sink_.put(offset, bytes_, granules_) : Result<void>();
  }

  // What is known without reading: a granule is of the kind that all of it is.
  Result<void> look_at(u64 offset, u64 length) {
    granules_.assign(base::divide_up(length, granule_bytes_), Granule::below);
    std::fill(bytes_.begin(), bytes_.end(), u8{0});
    u64 covered = 0;  // granules that have a kind
    for (u64 done = 0; done < length;) {
      const ChainRun run = TRY(source_.run_at(offset + done, length - done));
      const Granule kind = is_shared(run) ? Granule::below
                           : run.reads_as_zeros() && job_.find_zeros != FindZeros::no
                               ? Granule::zero
                               : Granule::data;
      const u64 last = (done + run.length_bytes - 1) / granule_bytes_;
      for (u64 i = done / granule_bytes_; i <= last; ++i) {
        const bool is_mixed = i < covered && granules_[i] != kind;
        granules_[i] = is_mixed ? Granule::data : kind;
      }
      covered = last + 1;
      done += run.length_bytes;
    }
    return {};
  }

  // What is data so far is read, and may turn out to be zeros.
  Result<void> read_data(u64 offset, u64 length) {
    for (u64 first = 0; first < granules_.size(); ++first) {
      if (granules_[first] != Granule::data) continue;
      u64 end = first + 1;
      while (end < granules_.size() && granules_[end] == Granule::data) ++end;
      const u64 from = first * granule_bytes_;
      const u64 to = std::min(end * granule_bytes_, length);
      TRY(source_.read(offset + from, std::span(bytes_).subspan(from, to - from)));
      if (job_.find_zeros == FindZeros::yes) {
        for (u64 i = first; i < end; ++i) {
          if (is_zero(granule_in(bytes_, i))) granules_[i] = Granule::zero;
        }
      }
      first = end;
    }
    return {};
  }

  Result<void> compare_with_below(u64 offset, u64 length) {
    if (std::ranges::all_of(granules_, [](Granule granule) { return granule == Granule::below; })) {
      return {};
    }
    if (below_) TRY(below_->read(offset, below_bytes_));
    // Behind the end of the disk the piece is padded with zeros, whatever is there below.
    std::fill(below_bytes_.begin() + static_cast<std::ptrdiff_t>(length), below_bytes_.end(),
              u8{0});
    for (u64 i = 0; i < granules_.size(); ++i) {
      if (granules_[i] == Granule::below) continue;
      if (std::ranges::equal(granule_in(bytes_, i), granule_in(below_bytes_, i))) {
        granules_[i] = Granule::below;
      }
    }
    return {};
  }

  std::span<const u8> granule_in(const std::vector<u8>& piece, u64 index) const {
    return std::span(piece).subspan(index * granule_bytes_, granule_bytes_);
  }

  const CopyJob& job_;
  ImageSink& sink_;
  ChainReader source_;
  std::optional<ChainReader> below_;
  const u64 size_bytes_;
  const u64 granule_bytes_;
  std::vector<u8> bytes_;
  std::vector<u8> below_bytes_;
  std::vector<Granule> granules_;
};

// The first sector of two equally long ranges that differs.
std::optional<u64> first_different_sector(std::span<const u8> a, std::span<const u8> b) {
  if (std::memcmp(a.data(), b.data(), a.size()) == 0) return std::nullopt;
  const auto [at, other] = std::ranges::mismatch(a, b);
  return base::align_down(static_cast<u64>(at - a.begin()), kSectorBytes);
}

}  // namespace

Result<void> copy_disk(const CopyJob& job, ImageSink& sink) {
  TRY(Copier(job, sink).run());
  return sink.finish();
}

Result<Comparison> compare_disks(const LayerList& first, const LayerList& second,
                                 const Progress& progress) {
  ChainReader a(first);
  ChainReader b(second);
  std::vector<u8> bytes_a(kPieceBytes);
  std::vector<u8> bytes_b(kPieceBytes);
  const u64 size = std::max(a.size_bytes(), b.size_bytes());
  // Behind its end a disk reads as zeros.
  const auto run_of = [](ChainReader& disk, u64 offset, u64 length) -> Result<ChainRun> {
    if (offset >= disk.size_bytes()) return ChainRun{.length_bytes = length};
    return disk.run_at(offset, std::min(length, disk.size_bytes() - offset));
  };
  for (u64 offset = 0; offset < size;) {
    if (progress) progress(offset, size);
    const ChainRun run_a = TRY(run_of(a, offset, size - offset));
    const ChainRun run_b = TRY(run_of(b, offset, size - offset));
    if (run_a.reads_as_zeros() && run_b.reads_as_zeros()) {
      offset += std::min(run_a.length_bytes, run_b.length_bytes);
      continue;
    }
    const u64 length = std::min(kPieceBytes, size - offset);
    TRY(a.read(offset, std::span(bytes_a).first(length)));
    TRY(b.read(offset, std::span(bytes_b).first(length)));
    const std::optional<u64> different =
        first_different_sector(std::span(bytes_a).first(length), std::span(bytes_b).first(length));
    if (different) return Comparison{offset + *different};
    offset += length;
  }
  if (progress) progress(size, size);
  return Comparison{};
}

}  // namespace blockdev
