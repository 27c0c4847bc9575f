#include "blockdev/disk.h"

#include "blockdev/content_map.h"
#include "blockdev/disk_queue.h"
#include "blockdev/image_chain.h"
#include "blockdev/merged_layer.h"
#include "blockdev/qcow2_image.h"

namespace blockdev {
namespace {

// An image chain without anything above it.
class ReadOnlyDisk final : public BlockBackend {
 public:
  ReadOnlyDisk(LayerList layers, EngineMaker make_engine) : make_engine_(std::move(make_engine)) {
    stack_.size_bytes = layers.front()->size_bytes();
    stack_.lower = std::move(layers);
  }
  u64 size_bytes() const override { return stack_.size_bytes; }
  bool is_read_only() const override { return true; }
  u32 discard_granularity_bytes() const override { return kBlockBytes; }
  Result<std::unique_ptr<BlockQueue>> open_queue() override {
    return std::unique_ptr<BlockQueue>(std::make_unique<DiskQueue>(stack_, TRY(make_engine_())));
  }
  Result<std::vector<ContentRun>> map_content(u64 offset_bytes, u64 length_bytes,
                                              u64 max_runs) const override {
    std::vector<ContentRun> found;
    ContentRuns runs(max_runs, found);
    TRY(map_layers(stack_.lower, offset_bytes, length_bytes, runs));
    return found;
  }

 private:
  DiskStack stack_;
  const EngineMaker make_engine_;
};

Result<std::unique_ptr<Disk>> make_disk(ImageChain chain, DiskMode mode,
                                        const DiskOptions& options) {
  auto disk = std::make_unique<Disk>();
  disk->images = std::move(chain.images);
  disk->warnings = std::move(chain.warnings);
  if (mode == DiskMode::ro) {
    disk->backend = std::make_unique<ReadOnlyDisk>(std::move(chain.layers), options.make_engine);
    return disk;
  }
  std::unique_ptr<Overlay> overlay =
      TRY(Overlay::create(std::move(chain.layers), options.overlay, options.make_engine));
  disk->overlay = overlay.get();
  disk->backend = std::move(overlay);
  return disk;
}

Result<std::unique_ptr<Disk>> make_durable_disk(WritableChain chain, const DiskOptions& options) {
  auto disk = std::make_unique<Disk>();
  disk->images = std::move(chain.below.images);
  disk->warnings = std::move(chain.below.warnings);
  std::unique_ptr<DurableDisk> durable =
      TRY(DurableDisk::create(std::move(chain.top), std::move(chain.below.layers), options));
  disk->durable = durable.get();
  disk->backend = std::move(durable);
  return disk;
}

}  // namespace

Result<std::unique_ptr<Disk>> open_disk(const DiskSpec& spec, const DiskOptions& options) {
  if (spec.mode == DiskMode::persist) {
    WritableChain chain = TRY(open_writable_chain(spec));
    chain.below.layers = TRY(merge_layers(std::move(chain.below.layers)));
    return make_durable_disk(std::move(chain), options);
  }
  ImageChain chain = TRY(open_image_chain(spec, options.locking));
  chain.layers = TRY(merge_layers(std::move(chain.layers)));
  return make_disk(std::move(chain), spec.mode, options);
}

namespace {

Result<ImageChain> open_chain_with_layers(const DiskSpec& spec,
                                          std::span<const std::string> layer_paths,
                                          ImageLocking locking) {
  ImageChain chain = TRY(open_image_chain(spec, locking));
  TRY_CONTEXT(check_layer_count(chain.layers.size() + layer_paths.size()), spec.path);
  chain.layers = TRY(merge_layers(std::move(chain.layers)));
  for (const std::string& path : layer_paths) {
    OpenedLayer opened = TRY(open_layer_file(path));
    if (opened.layer->size_bytes() != chain.layers.front()->size_bytes()) {
      return make_error(ErrorKind::corrupt,
                        "layer \"{}\" is of a disk of {} bytes, \"{}\" of one of {}", path,
                        opened.layer->size_bytes(), spec.path, chain.layers.front()->size_bytes());
    }
    chain.layers.insert(chain.layers.begin(), std::move(opened.layer));
    chain.images.insert(chain.images.begin(), std::move(opened.identity));
  }
  return chain;
}

}  // namespace

Result<std::unique_ptr<Disk>> open_disk_with_layers(const DiskSpec& spec,
                                                    std::span<const std::string> layer_paths,
                                                    const DiskOptions& options) {
  return make_disk(TRY(open_chain_with_layers(spec, layer_paths, options.locking)), spec.mode,
                   options);
}

Result<std::unique_ptr<Disk>> open_disk_below(const DiskSpec& spec,
                                              std::span<const std::string> layer_paths,
                                              ImageFile top, const DiskOptions& options) {
  ImageChain chain = TRY(open_chain_with_layers(spec, layer_paths, ImageLocking::shared));
  chain.images.insert(chain.images.begin(), top.identity);
  return make_durable_disk({std::move(top), std::move(chain)}, options);
}

Result<OpenedLayer> open_layer_file(const std::string& path) {
  ImageFile file = TRY(open_image_file(path, ImageFormat::qcow2));
  return OpenedLayer{
      TRY_CONTEXT(Qcow2Image::create(std::move(file.fd)), fmt::format("open \"{}\"", path)),
      std::move(file.identity)};
}

}  // namespace blockdev
