#include "blockdev/qcow2_create.h"

#include "blockdev/block_backend.h"
#include "blockdev/qcow2_builder.h"
#include "blockdev/qcow2_extensions.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

template <class... Args>
Error usage(fmt::format_string<Args...> format, Args&&... args) {
  return make_error(ErrorKind::usage, format, std::forward<Args>(args)...);
}

Result<void> check_backing(const NewImage& image) {
  TRY(check_backing_name(image.backing_name));
  if (image.backing_name.empty() != image.backing_format.empty()) {
    return usage("a backing file needs a name and a format");
  }
  return {};
}

}  // namespace

Result<void> check_new_image(const NewImage& image) {
  const bool is_extended = image.l2_entries == L2Entries::extended;
  if (image.cluster_bits < kMinClusterBits || image.cluster_bits > kMaxClusterBits) {
    return usage("the cluster size must be a power of two between 512 and 2 MiB");
  }
  if (is_extended && image.cluster_bits < kMinExtendedClusterBits) {
    return usage("extended_l2=on needs a cluster size of at least 16 KiB");
  }
  if (image.size_bytes == 0) return usage("a disk of no bytes");
  if (!base::is_aligned(image.size_bytes, kSectorBytes)) {
    return usage("size {} is not a multiple of {}", image.size_bytes, kSectorBytes);
  }
  if (image.size_bytes > kMaxDiskBytes) {
    return usage("a disk of {} bytes (at most {})", image.size_bytes, kMaxDiskBytes);
  }
  const u64 l1_entries = base::divide_up(image.size_bytes, image.geometry().bytes_per_l2_table());
  if (l1_entries > kMaxL1Bytes / sizeof(be64)) {
    return usage(
               "a disk of {} bytes in clusters of {} needs an L1 table of {} entries (at most {})",
               image.size_bytes, image.geometry().cluster_bytes(), l1_entries,
               kMaxL1Bytes / sizeof(be64))
        .with_hint("a larger cluster_size");
  }
  return check_backing(image);
}

Result<void> create_image(const base::Fd& fd, const NewImage& image) {
  Builder builder = TRY(Builder::create(fd, image));
  return builder.finish();
}

}  // namespace blockdev::qcow2
