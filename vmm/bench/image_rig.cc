#include "vmm/bench/image_rig.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "vmm/bench/child.h"
#include "vmm/bench/quicksave_vm.h"

namespace bench {
namespace {

constexpr u64 kChainClusterBytes = 64 * base::kKiB;

std::string format_of(const std::string& image) {
  return image.ends_with(".raw") ? "raw" : "qcow2";
}

std::vector<std::string> joined(std::vector<std::string> first,
                                const std::vector<std::string>& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

std::vector<std::string> common_words(const ImageWords& words) {
  std::vector<std::string> common = {"-c", fmt::format("{}", words.count),
                                     "-d", fmt::format("{}", words.depth),
                                     "-S", fmt::format("{}", words.step_bytes)};
  if (words.cache == ImageWords::Cache::passed) common.insert(common.end(), {"-t", "none"});
  if (words.op == ImageWords::Op::write) common.insert(common.end(), {"-w", "--pattern=90"});
  return common;
}

// "Run completed in 1.234 seconds."
Result<double> seconds_in(const std::string& output) {
  constexpr std::string_view kBefore = "completed in ";
  const std::size_t at = output.find(kBefore);
  double seconds = 0;
  if (at != std::string::npos) {
    const char* const begin = output.data() + at + kBefore.size();
    std::from_chars(begin, output.data() + output.size(), seconds);
  }
  if (seconds > 0) return seconds;
  return make_error(ErrorKind::failed, "no time in what it printed: {}", output);
}

}  // namespace

double ImageSeries::fio_best() const {
  if (fio_ring.empty() || fio_psync.empty()) return 0;
  return std::min(fio_ring.median(), fio_psync.median());
}

Result<ImageRig> ImageRig::create(const Workspace& workspace, const std::string& directory,
                                  u64 disk_bytes) {
  ImageRig rig(workspace, directory, disk_bytes);
  rig.has_qemu_ = rig.run({"qemu-img", "--version"}).has_value();
  rig.has_fio_ = rig.run({"fio", "--version"}).has_value();
  TRY(rig.make_images());
  return rig;
}

ImageRig::ImageRig(const Workspace& workspace, std::string directory, u64 disk_bytes)
    : workspace_(&workspace), directory_(std::move(directory)), disk_bytes_(disk_bytes) {}

std::string ImageRig::overlay(const std::string& kind) const {
  return fmt::format("{}/overlay-{}.qcow2", directory_, kind);
}

Result<void> ImageRig::make_images() const {
  const std::string size = fmt::format("{}", disk_bytes_);
  TRY(run({kThisProgram, "image", "create", "-f", "raw", raw(), size}));
  TRY(run({kThisProgram, "image", "bench", "-q", "-f", "raw", "-w", "--pattern=165", "-s", "1M",
           "-d", "1", "-c", fmt::format("{}", disk_bytes_ / base::kMiB), raw()}));
  TRY(run({kThisProgram, "image", "convert", "-f", "raw", "-O", "qcow2", raw(), qcow2()}));
  for (const char* const kind : {"64k", "128k-extended"}) TRY(make_overlay(kind));
  return {};
}

Result<void> ImageRig::make_overlay(const std::string& kind) const {
  std::error_code ignored;
  std::filesystem::remove(overlay(kind), ignored);
  TRY(run({kThisProgram, "image", "create", "-f", "qcow2", "-b", "image.qcow2", "-F", "qcow2", "-o",
           kind == "64k" ? "cluster_size=64k" : "cluster_size=128k,extended_l2=on",
           overlay(kind)}));
  return {};
}

Result<ImageSeries> ImageRig::by_turns(const std::string& image, const ImageWords& words,
                                       const std::string& fio_mode, Image state, u32 rounds) const {
  ImageSeries series;
  const std::string kind = image == overlay("64k") ? "64k" : "128k-extended";
  const auto prepare = [&]() -> Result<void> {
    if (state == Image::fresh) return make_overlay(kind);
    return {};
  };
  const auto run_ours = [&]() -> Result<void> {
    TRY(prepare());
    series.ours.add(TRY(our_seconds(image, words)));
    return {};
  };
  for (u32 round = 0; round < rounds; ++round) {
    // Who comes second finds memory that the first has just given back; the host's own is dearer.
    const bool is_ours_first = round % 2 == 0;
    if (is_ours_first) TRY(run_ours());
    if (has_qemu_) {
      TRY(prepare());
      series.peer.add(TRY(peer_seconds(image, words)));
    }
    if (!is_ours_first) TRY(run_ours());
    if (!has_fio_ || fio_mode.empty()) continue;
    series.fio_ring.add(TRY(fio_seconds("io_uring", fio_mode, words)));
    series.fio_psync.add(TRY(fio_seconds("psync", fio_mode, words)));
  }
  return series;
}

Result<double> ImageRig::our_seconds(const std::string& image, const ImageWords& words) const {
  std::vector<std::string> command = {kThisProgram, "image", "bench", "-f", format_of(image)};
  if (words.target == ImageWords::Target::throw_away) command.emplace_back("--throw-away");
  if (format_of(image) == "qcow2") command.insert(command.end(), {"--backing-dir", directory_});
  command = joined(std::move(command), common_words(words));
  command.push_back(image);
  return seconds_in(TRY(run(std::move(command))));
}

Result<double> ImageRig::peer_seconds(const std::string& image, const ImageWords& words) const {
  std::vector<std::string> command = {"qemu-img", "bench", "-i",
                                      "io_uring", "-f",    format_of(image)};
  command = joined(std::move(command), common_words(words));
  command.push_back(image);
  return seconds_in(TRY(run(std::move(command))));
}

// On the raw file, whatever the image: what its file system gives.
Result<double> ImageRig::fio_seconds(const char* engine, const std::string& mode,
                                     const ImageWords& words) const {
  // Before the report it prints remarks, such as that psync knows no depth.
  const std::string output =
      TRY(run({"fio", "--name=load", fmt::format("--filename={}", raw()), "--rw=" + mode, "--bs=4k",
               fmt::format("--ioengine={}", engine), fmt::format("--iodepth={}", words.depth),
               fmt::format("--size={}", disk_bytes_),
               fmt::format("--direct={}", words.cache == ImageWords::Cache::passed ? 1 : 0),
               fmt::format("--io_size={}", words.count * 4096), "--output-format=json"}));
  const nlohmann::json report = nlohmann::json::parse(
      output.substr(std::min(output.find('{'), output.size())), nullptr, false);
  const std::string pointer = fmt::format("/jobs/0/{}/runtime", mode);
  const nlohmann::json::json_pointer where(pointer);
  if (report.is_discarded() || !report.contains(where)) {
    return make_error(ErrorKind::failed, "fio printed no {}", pointer);
  }
  return report.at(where).get<double>() / 1e3;
}

Result<std::string> ImageRig::make_chain(u64 layers) const {
  std::string top;
  for (u64 layer = 0; layer < layers; ++layer) {
    const std::string name = fmt::format("chain{}-{}.qcow2", layers, layer);
    const std::string image = directory_ + "/" + name;
    std::vector<std::string> create = {kThisProgram, "image", "create", "-f", "qcow2"};
    if (!top.empty()) create.insert(create.end(), {"-b", top, "-F", "qcow2"});
    create.push_back(image);
    if (top.empty()) create.push_back(fmt::format("{}", disk_bytes_));
    TRY(run(std::move(create)));
    TRY(run({kThisProgram,
             "image",
             "bench",
             "-q",
             "-f",
             "qcow2",
             "--backing-dir",
             directory_,
             "-w",
             "--pattern=90",
             "-s",
             "64k",
             "-d",
             "1",
             "-S",
             fmt::format("{}", layers * kChainClusterBytes),
             "-o",
             fmt::format("{}", layer * kChainClusterBytes),
             "-c",
             fmt::format("{}", disk_bytes_ / kChainClusterBytes / layers),
             image}));
    top = name;
  }
  return directory_ + "/" + top;
}

Result<void> ImageRig::verify_scattered(const std::string& kind, u64 cluster_bytes) const {
  const ImageWords words{.op = ImageWords::Op::write,
                         .count = disk_bytes_ / cluster_bytes,
                         .depth = 32,
                         .step_bytes = 24'691 * cluster_bytes % disk_bytes_};
  const std::string expected = directory_ + "/expected.raw";
  std::error_code code;
  std::filesystem::copy_file(raw(), expected, code);
  if (code) return make_error(ErrorKind::failed, "copy \"{}\": {}", raw(), code.message());
  TRY(make_overlay(kind));
  TRY(our_seconds(overlay(kind), words));
  if (has_qemu_) {
    TRY(peer_seconds(expected, words));
    TRY(run({"qemu-img", "check", "-f", "qcow2", overlay(kind)}));
    TRY(run({"qemu-img", "compare", "-f", "qcow2", "-F", "raw", overlay(kind), expected}));
  } else {
    TRY(our_seconds(expected, words));
    TRY(run({kThisProgram, "image", "compare", "--backing-dir", directory_, "-f", "qcow2", "-F",
             "raw", overlay(kind), expected}));
  }
  std::filesystem::remove(expected, code);
  return {};
}

// What it prints, once it has ended well.
Result<std::string> ImageRig::run(std::vector<std::string> words) const {
  const std::string name =
      words[0] == kThisProgram ? "quicksave " + words[1] + " " + words[2] : words[0];
  Child child = TRY(Child::start(std::move(words), workspace_->path(), ChildOutput::pipe,
                                 workspace_->file("errors")));
  std::string output;
  char bytes[4096];
  for (;;) {
    const ssize_t count = ::read(child.output().get(), bytes, sizeof bytes);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    output.append(bytes, static_cast<std::size_t>(count));
  }
  const int status = child.wait();
  if (status == 0) return output;
  return make_error(ErrorKind::failed, "{} returned {}: {}", name, status, child.errors());
}

}  // namespace bench
