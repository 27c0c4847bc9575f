// `quicksave image compare` and `convert`.

#include <algorithm>

#include "blockdev/block_backend.h"
#include "blockdev/disk_sink.h"
#include "vmm/base/ranges.h"
#include "vmm/control/size_text.h"
#include "vmm/image/words.h"

namespace image {
namespace {

using blockdev::DiskSpec;
using blockdev::ImageChain;
using blockdev::ImageFormat;
using blockdev::ImageSink;
using control::parse_size;

constexpr u64 kMaxSparseBytes = 16 * base::kMiB;  // as qemu-img

Result<u64> sparse_bytes_of(const std::string& text) {
  const u64 bytes = TRY(parse_size("-S", text, 1));
  if (bytes % blockdev::kSectorBytes != 0 || bytes > kMaxSparseBytes) {
    return make_error(ErrorKind::usage, "-S {}: not a multiple of 512 up to 16M", text)
        .with_hint("-S 0 looks for no zeros and allocates everything");
  }
  return bytes;
}

// What lies below the target, as far as it can be read.
struct Below {
  ImageChain chain;  // empty layers: all of it is shared, or there is nothing
  blockdev::LayerList layers;
  u64 shared_from = blockdev::CopyJob::kNothingShared;
};

Result<Below> open_below(const ConvertOptions& options, const ImageChain& source,
                         const blockdev::qcow2::NewImage& image) {
  Below below;
  const std::string path = full_backing_name(options.target, image.backing_name);
  DiskSpec spec;
  spec.path = path;
  spec.format = TRY(blockdev::parse_image_format(image.backing_format));
  spec.mode = blockdev::DiskMode::ro;
  spec.backing_dir = options.source.backing_dir;
  // An image of the source's own chain: what lies below it there lies below it here.
  const blockdev::ImageFile file = TRY_CONTEXT(blockdev::open_image_file(path, spec.format), "-B");
  for (u64 depth = 1; depth < source.images.size(); ++depth) {
    const blockdev::ImageIdentity& other = source.images[depth];
    if (!other.is_same_file(file.identity)) continue;
    if (other.format != spec.format) break;
    below.shared_from = depth;
    below.layers.assign(source.layers.begin() + static_cast<std::ptrdiff_t>(depth),
                        source.layers.end());
    return below;
  }
  below.chain = TRY_CONTEXT(open_chain(spec), "-B");
  below.layers = below.chain.layers;
  return below;
}

Result<std::unique_ptr<ImageSink>> make_sink(const base::Fd& fd, const WantedImage& wanted,
                                             u64 sparse_bytes,
                                             blockdev::RawSink::Target raw_target) {
  if (wanted.format == ImageFormat::qcow2) {
    return std::unique_ptr<ImageSink>(TRY(blockdev::BuilderSink::create(fd, wanted.qcow2)));
  }
  return std::unique_ptr<ImageSink>(
      std::make_unique<blockdev::RawSink>(fd, *wanted.size_bytes, sparse_bytes, raw_target));
}

Result<WantedImage> wanted_copy(const ConvertOptions& options, u64 source_bytes) {
  const ImageFormat format = TRY(image_format_of(options.target, options.target_format, "-O"));
  WantedImage wanted = TRY(
      wanted_image(format, {"", options.backing_file, options.backing_format, options.settings}));
  if (wanted.size_bytes && *wanted.size_bytes != source_bytes) {
    return make_error(ErrorKind::usage, "-o size={}: the source has {} bytes", *wanted.size_bytes,
                      source_bytes)
        .with_hint("quicksave image resize changes the size of the copy");
  }
  wanted.size_bytes = source_bytes;
  wanted.qcow2.size_bytes = source_bytes;
  if (format == ImageFormat::qcow2) TRY(blockdev::qcow2::check_new_image(wanted.qcow2));
  return wanted;
}

Result<void> check_room(const std::string& target, u64 target_bytes, u64 source_bytes) {
  if (target_bytes >= source_bytes) return {};
  return make_error(ErrorKind::usage, "\"{}\" has {} bytes, the source {}", target, target_bytes,
                    source_bytes);
}

Result<void> convert_to_new(const ConvertOptions& options, const ImageChain& source,
                            blockdev::CopyJob job, u64 sparse_bytes) {
  const u64 bytes = source.layers.front()->size_bytes();
  const WantedImage wanted = TRY(wanted_copy(options, bytes));
  Below below;
  std::vector<blockdev::ImageIdentity> others = source.images;
  if (!wanted.qcow2.backing_name.empty()) {
    below = TRY(open_below(options, source, wanted.qcow2));
    job.below = &below.layers;
    job.shared_from = below.shared_from;
    others.insert(others.end(), below.chain.images.begin(), below.chain.images.end());
  }
  TargetFile target = TRY(TargetFile::create(options.target, wanted.format, others));
  if (target.is_device()) {
    return make_error(ErrorKind::usage, "\"{}\" is a device: there is nothing to make",
                      options.target)
        .with_hint("-n writes to what is there");
  }
  const std::unique_ptr<ImageSink> sink =
      TRY(make_sink(target.fd(), wanted, sparse_bytes, blockdev::RawSink::Target::fresh));
  TRY(blockdev::copy_disk(job, *sink));
  return target.keep();
}

// Into a qcow2 image that is there: by the engine that VMs write through.
Result<void> convert_to_disk(const ConvertOptions& options, const blockdev::CopyJob& job,
                             u64 bytes) {
  constexpr u64 kGranuleBytes = 4096;
  DiskSpec spec;
  spec.path = options.target;
  spec.format = ImageFormat::qcow2;
  spec.backing_dir = options.source.backing_dir;
  const std::unique_ptr<blockdev::Disk> disk = TRY(open_to_write(spec));
  TRY(check_room(options.target, disk->durable->size_bytes(), bytes));
  {
    const auto sink = TRY(blockdev::DiskSink::create(*disk->durable, bytes, kGranuleBytes));
    TRY(blockdev::copy_disk(job, *sink));
  }
  return disk->durable->close();
}

Result<void> convert_to_existing(const ConvertOptions& options, const blockdev::CopyJob& job,
                                 u64 sparse_bytes) {
  const ImageFormat format = TRY(image_format_of(options.target, options.target_format, "-O"));
  if (!options.backing_file.empty() || !options.settings.empty()) {
    return make_error(ErrorKind::usage, "-n makes no image, so -B and -o have no meaning");
  }
  const u64 bytes = job.source->front()->size_bytes();
  if (format == ImageFormat::qcow2) return convert_to_disk(options, job, bytes);
  const blockdev::ImageFile file = TRY(open_file_to_write(options.target, format));
  TRY(check_room(options.target, base::align_up(file.identity.size_bytes, 512), bytes));
  blockdev::RawSink sink(file.fd, bytes, sparse_bytes, blockdev::RawSink::Target::existing);
  return blockdev::copy_disk(job, sink);
}

}  // namespace

Result<int> compare(const ImageOptions& first, const ImageOptions& second, ShowProgress progress) {
  const DiskSpec first_spec = TRY(disk_spec_of(first, "-f"));
  const DiskSpec second_spec = TRY(disk_spec_of(second, "-F"));
  const ImageChain a = TRY(open_chain(first_spec));
  const ImageChain b = TRY(open_chain(second_spec));
  const blockdev::Comparison found =
      TRY(blockdev::compare_disks(a.layers, b.layers, progress_line(progress)));
  const auto [shorter, longer] =
      std::minmax({a.layers.front()->size_bytes(), b.layers.front()->size_bytes()});
  if (shorter != longer && found.first_difference.value_or(longer) >= shorter) {
    put("Warning: Image size mismatch!\n");
  }
  if (found.first_difference) {
    put(fmt::format("Content mismatch at offset {}!\n", *found.first_difference));
    return kExitDifferent;
  }
  put("Images are identical.\n");
  return kExitDone;
}

Result<int> convert(const ConvertOptions& options) {
  const u64 sparse_bytes = TRY(sparse_bytes_of(options.sparse_size));
  const DiskSpec spec = TRY(disk_spec_of(options.source, "-f"));
  const ImageChain source = TRY(open_chain(spec));
  blockdev::CopyJob job;
  job.source = &source.layers;
  job.find_zeros = sparse_bytes == 0 ? blockdev::FindZeros::no : blockdev::FindZeros::yes;
  job.progress = progress_line(options.progress);
  if (options.target_exists == TargetExists::yes) {
    TRY(convert_to_existing(options, job, sparse_bytes));
  } else {
    TRY(convert_to_new(options, source, job, sparse_bytes));
  }
  return kExitDone;
}

}  // namespace image
