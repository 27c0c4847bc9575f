#include "vmm/persistent_disk.h"

#include <fcntl.h>
#include <unistd.h>

#include "blockdev/qcow2_create.h"

namespace vmm {

blockdev::BackingName PersistentDisk::backing_name(const snapshot::Uuid& owner) const {
  if (parts_.file.owner == FileOwner::user) return {parts_.file.path, parts_.file.format};
  return layer_backing_name(owner, snapshot::disk_layer_file(parts_.slot));
}

Result<WrittenFile> PersistentDisk::make_fresh(const blockdev::BackingName& backing) {
  // The frozen file and the fresh one.
  TRY_CONTEXT(blockdev::check_layer_count(parts_.disk->lower().size() + 2),
              fmt::format("disk {}", name()));
  const std::string path =
      fmt::format("{}/{}", vm_directory_, head_file_name(parts_.slot, ++parts_.files_made));
  blockdev::ImageFile file = TRY(create_head_file(path, parts_.disk->size_bytes(), backing));
  auto image = parts_.disk->prepare(std::move(file));
  if (!image) ::unlink(path.c_str());
  return WrittenFile{{FileOwner::vm, path, blockdev::ImageFormat::qcow2}, TRY(std::move(image))};
}

void PersistentDisk::split(WrittenFile fresh) {
  blockdev::LayerList lower = parts_.below.lower();
  lower.insert(lower.begin(), parts_.disk->top());
  auto frozen = std::make_shared<FrozenFile>(
      parts_.file, parts_.disk->switch_to(std::move(fresh.image), std::move(lower)));
  parts_.below.layers.push_back(
      {.layer = frozen->layer(), .sealed = nullptr, .frozen = frozen, .file = std::nullopt});
  parts_.file = std::move(fresh.file);
}

WrittenFile PersistentDisk::rebase_on(WrittenFile fresh, const DiskMark& target) {
  WrittenFile left{std::exchange(parts_.file, std::move(fresh.file)),
                   parts_.disk->switch_to(std::move(fresh.image), target.lower())};
  parts_.below = target;
  return left;
}

std::string head_file_name(u32 slot, u64 number) {
  return fmt::format("disk-{}-{}.qcow2", slot, number);
}

// Both kinds of directory are two below the home.
blockdev::BackingName layer_backing_name(const snapshot::Uuid& owner, const std::string& file) {
  return {.path = fmt::format("../../snapshots/{}/{}", owner.to_string(), file),
          .format = blockdev::ImageFormat::qcow2};
}

blockdev::BackingName top_backing_name(const DiskMark& mark, const snapshot::Uuid& node, u32 slot) {
  if (!mark.layers.empty()) {
    const MarkedLayer& top = mark.layers.back();
    if (const std::optional<snapshot::DiskLayer> file = top.described(); file) {
      return layer_backing_name(file->owner, file->file);
    }
    if (top.frozen->file().owner == FileOwner::user) {
      return {top.frozen->file().path, top.frozen->file().format};
    }
    return layer_backing_name(node, snapshot::disk_layer_file(slot));
  }
  const snapshot::BaseImage& base = mark.bases.back();
  return {base.path,
          base.format == "raw" ? blockdev::ImageFormat::raw : blockdev::ImageFormat::qcow2};
}

Result<blockdev::ImageFile> create_head_file(const std::string& path, u64 size_bytes,
                                             const blockdev::BackingName& backing) {
  const auto create = [&]() -> Result<blockdev::ImageFile> {
    {
      const base::Fd file = TRY(base::open_file(path, O_RDWR | O_CREAT | O_EXCL));
      TRY(blockdev::qcow2::create_image(
          file,
          blockdev::qcow2::overlay_image(
              size_bytes, backing.path, std::string(blockdev::image_format_name(backing.format)))));
    }
    return blockdev::open_image_file_for_writing(path, blockdev::ImageFormat::qcow2);
  };
  Result<blockdev::ImageFile> created = create();
  if (created) return created;
  ::unlink(path.c_str());
  return std::move(created).error().with_context(fmt::format("make \"{}\"", path));
}

}  // namespace vmm
