// `quicksave image map`: from which image of a chain each part of the disk comes.

#include <nlohmann/json.hpp>

#include "blockdev/chain_reader.h"
#include "blockdev/qcow2_image.h"
#include "vmm/image/words.h"

namespace image {
namespace {

using blockdev::ChainRun;
using blockdev::ImageFormat;
using nlohmann::json;

// As `qemu-img map` tells it.
struct Part {
  u64 start = 0;
  u64 length = 0;
  u64 depth = 0;
  bool is_present = false;
  bool is_zero = false;
  bool is_data = false;
  std::optional<u64> file_offset;

  bool continues(const Part& before) const {
    const bool is_same_kind = is_present == before.is_present && is_zero == before.is_zero &&
                              is_data == before.is_data && depth == before.depth &&
                              file_offset.has_value() == before.file_offset.has_value();
    return is_same_kind && (!file_offset || *file_offset == *before.file_offset + before.length);
  }
};

class Mapper final {
 public:
  explicit Mapper(const blockdev::ImageChain& chain) : chain_(chain), reader_(chain.layers) {}

  Result<std::vector<Part>> run() {
    const u64 size = reader_.size_bytes();
    for (u64 offset = 0; offset < size;) {
      ChainRun run = TRY(reader_.run_at(offset, size - offset));
      TRY(add_run(offset, run));
      offset += run.length_bytes;
    }
    return std::move(parts_);
  }

 private:
  Result<void> add_run(u64 offset, const ChainRun& run) {
    const bool is_qcow2 = chain_.images[run.depth].format == ImageFormat::qcow2;
    Part part{.start = offset, .length = run.length_bytes, .depth = run.depth, .file_offset = {}};
    part.is_present = run.kind != ChainRun::Kind::absent && run.kind != ChainRun::Kind::beyond;
    switch (run.kind) {
      case ChainRun::Kind::absent:
      case ChainRun::Kind::beyond:
      case ChainRun::Kind::zero:
        part.is_zero = true;
        if (is_qcow2) return add_zeros(part);
        break;
      case ChainRun::Kind::hole:
        // Only of a raw image: a cluster of another one is data, whatever its file has there.
        part.is_zero = !is_qcow2;
        part.is_data = is_qcow2;
        part.file_offset = run.file_offset;
        break;
      case ChainRun::Kind::data:
        part.is_data = true;
        part.file_offset = run.file_offset;
        break;
      case ChainRun::Kind::computed: part.is_data = true; break;
    }
    add(part);
    return {};
  }

  // Each cluster of zeros may be allocated somewhere; one of which nothing is said only if its
  // neighbours among the subclusters are.
  Result<void> add_zeros(const Part& zeros) {
    const auto& image = static_cast<const blockdev::Qcow2Image&>(*chain_.layers[zeros.depth]);
    if (!zeros.is_present && !image.header().has_extended_l2) {
      add(zeros);
      return {};
    }
    const u64 cluster = image.header().cluster_bytes();
    for (u64 done = 0; done < zeros.length;) {
      Part part = zeros;
      part.start += done;
      part.length = std::min(cluster - part.start % cluster, zeros.length - done);
      const u64 host = TRY(image.preallocated_at(part.start));
      if (host != 0) part.file_offset = host;
      add(part);
      done += part.length;
    }
    return {};
  }

  void add(const Part& part) {
    if (!parts_.empty() && part.continues(parts_.back())) {
      parts_.back().length += part.length;
    } else {
      parts_.push_back(part);
    }
  }

  const blockdev::ImageChain& chain_;
  blockdev::ChainReader reader_;
  std::vector<Part> parts_;
};

json to_json(const std::vector<Part>& parts) {
  json array = json::array();
  for (const Part& part : parts) {
    json value = {{"start", part.start},        {"length", part.length}, {"depth", part.depth},
                  {"present", part.is_present}, {"zero", part.is_zero},  {"data", part.is_data}};
    if (part.file_offset) value["offset"] = *part.file_offset;
    array.push_back(std::move(value));
  }
  return array;
}

std::string hexadecimal(u64 value) { return value == 0 ? "0" : fmt::format("{:#x}", value); }

Result<std::string> to_text(const std::vector<Part>& parts, const std::vector<std::string>& names) {
  std::string text = fmt::format("{:<16}{:<16}{:<16}File\n", "Offset", "Length", "Mapped to");
  for (const Part& part : parts) {
    if (!part.is_data) continue;
    if (!part.file_offset) {
      return make_error(ErrorKind::unsupported,
                        "compressed clusters have no place that could be shown in this form")
          .with_hint("--output=json");
    }
    text += fmt::format("{:<16}{:<16}{:<16}{}\n", hexadecimal(part.start), hexadecimal(part.length),
                        hexadecimal(*part.file_offset), names[part.depth]);
  }
  return text;
}

}  // namespace

Result<int> map(const ImageOptions& options, Output output) {
  const blockdev::DiskSpec spec = TRY(disk_spec_of(options, "-f"));
  const blockdev::ImageChain chain = TRY(open_chain(spec));
  const std::vector<Part> parts = TRY(Mapper(chain).run());
  if (output == Output::json) {
    put_json(to_json(parts));
  } else {
    put(TRY(to_text(parts, names_of(spec, chain))));
  }
  return kExitDone;
}

}  // namespace image
