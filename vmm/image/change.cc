// `quicksave image resize`, `rebase` and `commit`: images that are there, changed. What needs new
// clusters is done by the engine that VMs write through; what does not, to the closed file
// (qcow2_rebase.h).

#include <algorithm>

#include "blockdev/disk.h"
#include "blockdev/disk_sink.h"
#include "blockdev/qcow2_header.h"
#include "blockdev/qcow2_image.h"
#include "blockdev/qcow2_rebase.h"
#include "vmm/base/ranges.h"
#include "vmm/control/size_text.h"
#include "vmm/image/words.h"

namespace image {
namespace {

using blockdev::Disk;
using blockdev::DiskMode;
using blockdev::DiskSpec;
using blockdev::ImageChain;
using blockdev::ImageFile;
using blockdev::ImageFormat;
using blockdev::ImageIdentity;
using blockdev::LayerList;

// A single image. The descriptor stays the caller's.
Result<blockdev::LayerPointer> single_layer(const ImageFile& file) {
  base::Fd fd = TRY(file.fd.duplicate());
  const auto image = TRY(blockdev::Qcow2Image::create(std::move(fd)));
  return blockdev::LayerPointer(image);
}

// --- resize ---

Result<u64> wanted_size(const std::string& text, u64 old_bytes) {
  const bool is_relative = text.starts_with('+') || text.starts_with('-');
  const u64 number = TRY(control::parse_size("size", text.substr(is_relative ? 1 : 0), 1));
  u64 bytes = number;
  if (is_relative) {
    const bool is_less = text.starts_with('-');
    if (is_less && number >= old_bytes) {
      return make_error(ErrorKind::usage, "size {}: the disk has {} bytes", text, old_bytes);
    }
    bytes = is_less                             ? old_bytes - number
            : number <= blockdev::kMaxDiskBytes ? old_bytes + number
                                                : number;  // refused below
  }
  if (bytes == 0 || !base::is_aligned(bytes, blockdev::kSectorBytes) ||
      bytes > blockdev::kMaxDiskBytes) {
    return make_error(ErrorKind::usage, "size {}: not a multiple of 512 between 512 and {}", text,
                      control::format_size(blockdev::kMaxDiskBytes));
  }
  return bytes;
}

Result<void> make_larger(const DiskSpec& spec, u64 bytes) {
  const std::unique_ptr<Disk> disk = TRY(open_to_write(spec));
  TRY(disk->durable->resize(bytes));
  return disk->durable->close();
}

Result<void> make_smaller(const DiskSpec& spec, u64 bytes) {
  if (spec.format == ImageFormat::raw) return make_larger(spec, bytes);
  const ImageFile file = TRY(open_file_to_write(spec.path, spec.format));
  return blockdev::qcow2::shrink_image(file.fd, bytes);
}

// --- rebase ---

// The chain that a backing file heads, for reading.
Result<ImageChain> open_backing_chain(const ImageOptions& image, const std::string& name,
                                      const std::string& format) {
  DiskSpec spec;
  spec.path = full_backing_name(image.file, name);
  spec.format = TRY(image_format_of(name, format, "-F"));
  spec.mode = DiskMode::ro;
  spec.backing_dir = image.backing_dir;
  return open_chain(spec);
}

// What the disk shows from its old chain, and would not from the new one, is written into it.
Result<void> keep_content(const DiskSpec& spec, const LayerList& fresh,
                          const blockdev::Progress& progress) {
  blockdev::DiskOptions options;
  if (!fresh.empty()) options.gets_backing = blockdev::GetsBacking::yes;
  const std::unique_ptr<Disk> disk = TRY(open_to_write(spec, options));
  blockdev::DurableDisk& durable = *disk->durable;
  // Without what the image has itself: that stays what it is.
  const u64 bytes = durable.size_bytes();
  LayerList old = {blockdev::LayerPointer(durable.top())};
  old.insert(old.end(), durable.lower().begin(), durable.lower().end());
  {
    const std::unique_ptr<blockdev::DiskSink> sink =
        TRY(blockdev::DiskSink::create(durable, bytes, durable.discard_granularity_bytes()));
    blockdev::CopyJob job;
    job.source = &old;
    job.below = &fresh;
    job.own_layers = 1;
    job.progress = progress;
    TRY(blockdev::copy_disk(job, *sink));
  }
  old.clear();
  return durable.close();
}

// --- commit ---

// Which image of the chain is committed into.
Result<u64> target_depth(const CommitOptions& options, const DiskSpec& spec,
                         const ImageChain& chain) {
  if (chain.images.size() < 2) {
    return make_error(ErrorKind::usage, "\"{}\" has no backing file to commit into",
                      options.image.file);
  }
  if (options.base.empty()) return u64{1};
  const std::vector<std::string> names = names_of(spec, chain);
  // As the user would open it; else as the image above it may name it.
  for (u64 depth = 1; depth < chain.images.size(); ++depth) {
    if (is_file_at(options.base, chain.images[depth])) return depth;
  }
  for (u64 depth = 1; depth < chain.images.size(); ++depth) {
    const std::string as_above = full_backing_name(names[depth - 1], options.base);
    if (is_file_at(as_above, chain.images[depth])) return depth;
  }
  return make_error(ErrorKind::usage, "-b {}: no image of that name lies below \"{}\"",
                    options.base, options.image.file);
}

// The images above the target, opened one by one: the target is opened by who writes it.
struct Upper {
  std::vector<ImageFile> files;
  LayerList layers;
};

Result<Upper> open_upper(const std::vector<ImageIdentity>& images, u64 depth) {
  Upper upper;
  for (u64 i = 0; i < depth; ++i) {
    // The uppermost is emptied afterwards.
    ImageFile file = i == 0 ? TRY(open_file_to_write(images[i].path, images[i].format))
                            : TRY(blockdev::open_image_file(images[i].path, images[i].format));
    if (!file.identity.is_same_file(images[i])) {
      return make_error(ErrorKind::failed, "\"{}\" was replaced meanwhile", images[i].path);
    }
    upper.layers.push_back(TRY(single_layer(file)));
    upper.files.push_back(std::move(file));
  }
  return upper;
}

DiskSpec spec_from(const std::vector<ImageIdentity>& images, u64 depth) {
  DiskSpec spec;
  spec.path = images[depth].path;
  spec.format = images[depth].format;
  for (u64 i = depth + 1; i < images.size(); ++i) {
    spec.backing.push_back({images[i].path, images[i].format});
  }
  return spec;
}

// Emptied, it shows what its own name leads to.
Result<void> check_can_be_emptied(const ImageFile& top, const ImageIdentity& below) {
  const std::string context = fmt::format("\"{}\"", top.identity.path);
  TRY_CONTEXT(blockdev::qcow2::check_can_be_emptied(top.fd), context);
  const auto header = TRY(blockdev::qcow2::read_header(top.fd, top.identity.size_bytes));
  if (is_file_at(full_backing_name(top.identity.path, header.backing_name), below)) return {};
  return make_error(
             ErrorKind::usage,
             "{} would be empty afterwards and names \"{}\", not \"{}\", as its backing file",
             context, header.backing_name, below.path)
      .with_hint("image rebase -u names another; or -b FILE, which empties nothing");
}

Result<void> commit_into(Disk& target, const LayerList& layers,
                         const blockdev::Progress& progress) {
  const u64 bytes = layers.front()->size_bytes();
  if (target.durable->size_bytes() < bytes) TRY(target.durable->resize(bytes));
  // Gone, and its queue with it, before the disk is closed.
  const std::unique_ptr<blockdev::DiskSink> sink =
      TRY(blockdev::DiskSink::create(*target.durable, bytes, blockdev::kSectorBytes));
  blockdev::CopyJob job;
  job.source = &layers;
  job.find_zeros = blockdev::FindZeros::known;
  job.absent = blockdev::Absent::stays_below;
  job.progress = progress;
  return blockdev::copy_disk(job, *sink);
}

}  // namespace

Result<int> resize(const ResizeOptions& options) {
  const DiskSpec spec = TRY(disk_spec_of(options.image, "-f"));
  u64 old_bytes = 0;
  {
    const ImageFile file = TRY(blockdev::open_image_file(spec.path, spec.format));
    old_bytes = TRY_CONTEXT(disk_bytes_of(file), fmt::format("image \"{}\"", spec.path));
  }
  const u64 bytes = TRY(wanted_size(options.size, old_bytes));
  if (bytes < old_bytes && options.shrink == Shrink::refused) {
    return make_error(ErrorKind::usage, "from {} to {} bytes: what lies behind is lost", old_bytes,
                      bytes)
        .with_hint("--shrink if that is meant");
  }
  const std::string context = fmt::format("resize \"{}\"", spec.path);
  if (bytes > old_bytes) TRY_CONTEXT(make_larger(spec, bytes), context);
  if (bytes < old_bytes) TRY_CONTEXT(make_smaller(spec, bytes), context);
  put("Image resized.\n");
  return kExitDone;
}

Result<int> rebase(const RebaseOptions& options) {
  const DiskSpec spec = TRY(disk_spec_of(options.image, "-f"));
  if (spec.format == ImageFormat::raw) {
    return make_error(ErrorKind::usage, "\"{}\": a raw image has no backing file", spec.path);
  }
  if (!options.backing_file) {
    return make_error(ErrorKind::usage, "the new backing file is not given")
        .with_hint("-b FILE -F FORMAT, or -b \"\" for none");
  }
  const std::string& name = *options.backing_file;
  if (!name.empty()) {
    TRY(check_backing_name(name));
    TRY(image_format_of(name, options.backing_format, "-F"));
  }
  if (options.mode == RebaseMode::safe) {
    ImageChain fresh;
    if (!name.empty()) {
      fresh = TRY(open_backing_chain(options.image, name, options.backing_format));
    }
    TRY(keep_content(spec, fresh.layers, progress_line(options.progress)));
  }
  const ImageFile file = TRY(open_file_to_write(spec.path, spec.format));
  TRY_CONTEXT(
      blockdev::qcow2::set_backing_file(file.fd, name, name.empty() ? "" : options.backing_format),
      fmt::format("rebase \"{}\"", spec.path));
  return kExitDone;
}

Result<int> commit(const CommitOptions& options) {
  const DiskSpec spec = TRY(disk_spec_of(options.image, "-f"));
  std::vector<ImageIdentity> images;
  u64 depth = 0;
  {
    const ImageChain chain = TRY(open_chain(spec));
    depth = TRY(target_depth(options, spec, chain));
    images = chain.images;
  }
  const Upper upper = TRY(open_upper(images, depth));
  // Before anything is written.
  if (options.base.empty()) TRY(check_can_be_emptied(upper.files.front(), images[1]));
  {
    const std::unique_ptr<Disk> target = TRY(open_to_write(spec_from(images, depth)));
    TRY(commit_into(*target, upper.layers, progress_line(options.progress)));
    TRY(target->durable->close());
  }
  // Only when all of it is durable below; further down the chain it is still needed.
  if (options.base.empty()) {
    TRY_CONTEXT(blockdev::qcow2::empty_image(upper.files.front().fd),
                fmt::format("empty \"{}\"", spec.path));
  }
  put("Image committed.\n");
  return kExitDone;
}

}  // namespace image
