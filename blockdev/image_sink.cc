#include "blockdev/image_sink.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "vmm/base/ranges.h"

namespace blockdev {

// --- BuilderSink ---

Result<std::unique_ptr<BuilderSink>> BuilderSink::create(const base::Fd& fd,
                                                         const qcow2::NewImage& image) {
  qcow2::Builder builder = TRY(qcow2::Builder::create(fd, image));
  return std::unique_ptr<BuilderSink>(
      new BuilderSink(fd, std::move(builder), !image.backing_name.empty()));
}

Result<void> BuilderSink::put(u64 offset, std::span<const u8> bytes,
                              std::span<const Granule> granules) {
  const u64 cluster = builder_.geometry().cluster_bytes();
  const u64 per_cluster = cluster / granule_bytes();
  for (u64 first = 0; first < granules.size(); first += per_cluster) {
    const auto of_cluster = granules.subspan(first, std::min(per_cluster, granules.size() - first));
    u64 bitmap = 0;
    for (u64 i = 0; i < of_cluster.size(); ++i) {
      if (of_cluster[i] == Granule::data) bitmap |= u64{1} << i;
      if (of_cluster[i] == Granule::zero && has_backing_) bitmap |= u64{1} << (32 + i);
    }
    if (bitmap == 0) continue;
    const u64 within = first * granule_bytes();
    TRY(builder_.add_cluster((offset + within) / cluster, bitmap, bytes.subspan(within, cluster)));
  }
  return {};
}

Result<void> BuilderSink::finish() {
  TRY(builder_.finish());
  return base::sync_file(fd_);
}

// --- RawSink ---

RawSink::RawSink(const base::Fd& fd, u64 size_bytes, u64 sparse_bytes, Target target)
    : fd_(fd), size_bytes_(size_bytes), sparse_bytes_(sparse_bytes), target_(target) {
  while (sparse_bytes_ % granule_bytes_ != 0) granule_bytes_ /= 2;
}

Result<void> RawSink::put(u64 offset, std::span<const u8> bytes,
                          std::span<const Granule> granules) {
  const u64 inside = std::min<u64>(bytes.size(), size_bytes_ - offset);
  const auto end_of_run = [&](u64 first) {
    u64 end = first;
    while (end < granules.size() && granules[end] == granules[first]) ++end;
    return end;
  };
  const auto is_hole = [&](u64 first, u64 end) {
    return granules[first] != Granule::data && (end - first) * granule_bytes_ >= sparse_bytes_;
  };
  for (u64 first = 0; first < granules.size();) {
    u64 end = end_of_run(first);
    const u64 at = first * granule_bytes_;
    if (is_hole(first, end)) {
      TRY(put_zeros(offset + at, std::min(end * granule_bytes_, inside) - at));
    } else {
      // With the runs behind it that are no holes, in one write.
      while (end < granules.size() && !is_hole(end, end_of_run(end))) end = end_of_run(end);
      TRY(base::write_exactly(fd_, bytes.subspan(at, std::min(end * granule_bytes_, inside) - at),
                              offset + at));
    }
    first = end;
  }
  return {};
}

Result<void> RawSink::put_zeros(u64 offset, u64 length) {
  if (target_ == Target::fresh) return {};
  const auto from = static_cast<off_t>(offset);
  const auto bytes = static_cast<off_t>(length);
  if (::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, bytes) == 0) {
    return {};
  }
  if (errno != EOPNOTSUPP) return errno_error("punch a hole");
  const std::vector<u8> zeros(length);
  return base::write_exactly(fd_, zeros, offset);
}

Result<void> RawSink::finish() {
  if (target_ == Target::fresh && ::ftruncate(fd_.get(), static_cast<off_t>(size_bytes_)) != 0) {
    return errno_error("set the size of the image");
  }
  return base::sync_file(fd_);
}

}  // namespace blockdev
