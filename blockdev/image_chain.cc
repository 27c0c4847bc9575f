#include "blockdev/image_chain.h"

#include <optional>

#include "blockdev/qcow2_image.h"
#include "blockdev/raw_image.h"

namespace blockdev {
namespace {

std::string_view base_name(std::string_view path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}
std::string_view directory_part(std::string_view path) {
  return path.substr(0, path.size() - base_name(path).size());
}

// Where the next image down comes from.
struct Step {
  enum class Source : u8 { user, image } source = Source::user;
  std::string name;
  ImageFormat format = ImageFormat::raw;
};

class ChainOpener final {
 public:
  enum class Top : u8 { for_reading, for_writing };
  ChainOpener(const DiskSpec& spec, Top top, ImageLocking locking)
      : spec_(spec), top_(top), locking_(locking) {}

  Result<ImageChain> open() {
    std::optional<Step> step = Step{Step::Source::user, spec_.path, spec_.format};
    while (step) {
      if (chain_.images.size() == kMaxChainDepth) {
        return make_error(ErrorKind::unsupported, "disk \"{}\": a chain of more than {} images",
                          spec_.path, kMaxChainDepth)
            .with_hint("qemu-img convert or rebase shortens it");
      }
      step = TRY(open_level(*step));
    }
    if (backing_used_ < spec_.backing.size()) {
      return make_error(ErrorKind::usage, "disk \"{}\": \"{}\" is raw, nothing can lie below it",
                        spec_.path, chain_.images.back().path)
          .with_hint("backing= lists the chain from top to bottom; leave out what is below");
    }
    return std::move(chain_);
  }

  // After open(), of a chain opened for writing.
  ImageFile take_top() { return std::move(top_file_); }

 private:
  // Opens one image and says what comes below it.
  Result<std::optional<Step>> open_level(const Step& step) {
    ImageFile file = TRY(open_file(step));
    TRY(check_not_seen(file.identity, step.name));
    const bool is_top = chain_.images.empty();
    chain_.images.push_back(file.identity);
    const std::string context = fmt::format("open \"{}\"", step.name);
    if (is_top && top_ == Top::for_writing) {
      top_file_ = {TRY(file.fd.duplicate()), file.identity};
    }
    if (step.format == ImageFormat::raw) {
      add_layer(step.name, TRY_CONTEXT(RawImage::create(std::move(file.fd)), context));
      return std::optional<Step>();
    }
    const auto image = TRY_CONTEXT(Qcow2Image::create(std::move(file.fd)), context);
    add_layer(step.name, image);
    for (const std::string& text : image->header().warnings) {
      warn("\"{}\": {}", step.name, text);
    }
    return step_below(step, image->header());
  }

  Result<ImageFile> open_file(const Step& step) const {
    if (chain_.images.empty() && top_ == Top::for_writing) {
      return open_image_file_for_writing(step.name, step.format);
    }
    if (step.source == Step::Source::user) {
      return open_image_file(step.name, step.format, locking_);
    }
    return open_image_file_beneath(spec_.backing_dir, step.name, step.format, locking_);
  }

  // An image that is to be written is read by who writes it, and here for its header only.
  void add_layer(const std::string& name, LayerPointer layer) {
    const u64 size = layer->size_bytes();
    if (chain_.images.size() > 1 && size < size_above_) {
      warn("\"{}\" is {} bytes shorter than the disk above it", name, size_above_ - size);
    }
    size_above_ = size;
    if (chain_.images.size() > 1 || top_ == Top::for_reading) {
      chain_.layers.push_back(std::move(layer));
    }
  }

  Result<std::optional<Step>> step_below(const Step& above, const qcow2::Header& header) {
    if (backing_used_ < spec_.backing.size()) {
      const BackingSpec& next = spec_.backing[backing_used_++];
      compare_names(above, header, next);
      return std::optional(Step{Step::Source::user, next.path, next.format});
    }
    if (header.backing_name.empty()) return std::optional<Step>();
    if (spec_.backing_dir.empty()) {
      return make_error(ErrorKind::denied,
                        "disk \"{}\": the image \"{}\" names a backing file, \"{}\", and names "
                        "inside images are not followed",
                        spec_.path, above.name, header.backing_name)
          .with_hint(
              fmt::format("add ,backing={}:{} (or the file's true place), or ,backing-dir=DIR",
                          doubled_commas(header.backing_name),
                          header.backing_format.empty() ? "FORMAT" : header.backing_format));
    }
    return std::optional(TRY(step_inside(above, header)));
  }

  // A name from inside an image. What it may be is decided by openat2 in image_file.h; what can
  // only be one of QEMU's other kinds of name is refused with a better message here.
  Result<Step> step_inside(const Step& above, const qcow2::Header& header) {
    const std::string& name = header.backing_name;
    if (name.front() == '/' || name.find(':') != std::string::npos) {
      return make_error(ErrorKind::denied,
                        "the image \"{}\" names a backing file, \"{}\", that is not a plain "
                        "relative file name",
                        above.name, name)
          .with_hint("say where it is with backing=FILE:FORMAT");
    }
    if (header.backing_format.empty()) {
      return make_error(ErrorKind::denied,
                        "the image \"{}\" does not say the format of its backing file \"{}\"",
                        above.name, name)
          .with_hint(fmt::format("say it with backing={}:FORMAT; formats are never guessed",
                                 doubled_commas(name)));
    }
    const ImageFormat format = TRY_CONTEXT(parse_image_format(header.backing_format),
                                           fmt::format("backing file of \"{}\"", above.name));
    // Relative to the image that names it; the top image counts as lying in backing-dir itself.
    const bool is_nested = above.source == Step::Source::image;
    return Step{Step::Source::image,
                (is_nested ? std::string(directory_part(above.name)) : std::string()) + name,
                format};
  }

  void compare_names(const Step& above, const qcow2::Header& header, const BackingSpec& next) {
    if (header.backing_name.empty()) {
      warn("\"{}\" names no backing file; \"{}\" is put below it", above.name, next.path);
    } else if (base_name(header.backing_name) != base_name(next.path)) {
      warn("\"{}\" names \"{}\" as its backing file; \"{}\" is used", above.name,
           header.backing_name, next.path);
    }
    if (!header.backing_format.empty() && header.backing_format != image_format_name(next.format)) {
      warn("\"{}\" says that its backing file is {}; it is opened as {}", above.name,
           header.backing_format, image_format_name(next.format));
    }
  }

  Result<void> check_not_seen(const ImageIdentity& identity, const std::string& name) const {
    for (const ImageIdentity& seen : chain_.images) {
      if (!seen.is_same_file(identity)) continue;
      return make_error(ErrorKind::corrupt,
                        "disk \"{}\": the chain is a loop: \"{}\" is in it twice", spec_.path,
                        name);
    }
    return {};
  }

  template <class... Args>
  void warn(fmt::format_string<Args...> format, Args&&... args) {
    chain_.warnings.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  const DiskSpec& spec_;
  const Top top_;
  const ImageLocking locking_;  // of what is read
  ImageChain chain_;
  ImageFile top_file_;
  u64 size_above_ = 0;
  u64 backing_used_ = 0;  // entries of spec_.backing that are open
};

}  // namespace

Result<ImageChain> open_image_chain(const DiskSpec& spec, ImageLocking locking) {
  return ChainOpener(spec, ChainOpener::Top::for_reading, locking).open();
}

Result<WritableChain> open_writable_chain(const DiskSpec& spec) {
  ChainOpener opener(spec, ChainOpener::Top::for_writing, ImageLocking::shared);
  ImageChain below = TRY(opener.open());
  return WritableChain{opener.take_top(), std::move(below)};
}

}  // namespace blockdev
