#include "tests/blockdev/support/crash_judge.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockdev/qcow2_check.h"
#include "blockdev/qcow2_image.h"
#include "blockdev/raw_image.h"
#include "vmm/base/check.h"

namespace blockdev::test {

QemuVerdict qemu_check(const std::string& path) {
  // No shell: one process for each image is what this costs.
  int ends[2];
  CHECK(::pipe2(ends, O_CLOEXEC) == 0);
  const base::Fd from(ends[0]);
  base::Fd to(ends[1]);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, to.get(), 1);
  ::posix_spawn_file_actions_adddup2(&actions, to.get(), 2);
  const char* arguments[] = {"qemu-img", "check", "-f", "qcow2", path.c_str(), nullptr};
  int pid = -1;
  const int error =
      ::posix_spawnp(&pid, arguments[0], &actions, nullptr, const_cast<char**>(arguments), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  CHECK(error == 0);
  to.reset();
  QemuVerdict verdict;
  char buffer[4096];
  while (true) {
    const ssize_t count = ::read(from.get(), buffer, sizeof buffer);
    if (count <= 0) break;
    verdict.output.append(buffer, static_cast<std::size_t>(count));
  }
  int status = 0;
  CHECK(::waitpid(pid, &status, 0) == pid);
  verdict.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return verdict;
}

CrashJudge::CrashJudge(const SectorHistory& history, ImageFormat format, LayerList lower,
                       const std::string& directory)
    : history_(history),
      format_(format),
      lower_(std::move(lower)),
      qemu_path_(directory + "/crashed"),
      qemu_slot_(base::open_file(qemu_path_, O_RDWR | O_CREAT | O_TRUNC).value()) {}

std::optional<std::string> CrashJudge::judge(const SparseImage& image, u64 time) {
  slot_.hold(image);
  if (auto violation = check_tables()) return violation;
  return check_contents(time);
}

std::optional<std::string> CrashJudge::check_tables() {
  if (format_ == ImageFormat::raw) return std::nullopt;
  const auto report = qcow2::check_image(slot_.fd());
  if (!report) return "the image cannot be checked: " + report.error().message();
  if (report->corruptions == 0 && report->check_errors == 0) return std::nullopt;
  return fmt::format("the image is corrupt: {}", fmt::join(report->findings, "; "));
}

std::optional<std::string> CrashJudge::check_contents(u64 time) {
  LayerList layers = lower_;
  base::Fd fd = slot_.fd().duplicate().value();
  LayerPointer top;
  if (format_ == ImageFormat::raw) {
    if (base::file_size(fd).value() == 0) return "the raw image is empty";
    top = RawImage::create(std::move(fd)).value();
  } else {
    auto image = Qcow2Image::create(std::move(fd));
    if (!image) return "the image cannot be opened: " + image.error().message();
    top = *image;
  }
  layers.insert(layers.begin(), top);
  const u64 sectors = std::min(top->size_bytes() / kSectorBytes, history_.sector_count());
  bytes_.resize(sectors * kSectorBytes);
  ReadScratch scratch;
  const auto done = read_layers(layers, 0, bytes_, scratch);
  if (!done) return "the disk cannot be read: " + done.error().message();
  for (u64 sector = 0; sector < sectors; ++sector) {
    const Stamp stamp = stamp_of(std::span(bytes_).subspan(sector * kSectorBytes, kSectorBytes));
    if (auto violation = history_.after_crash(sector, stamp, time)) return violation;
  }
  return std::nullopt;
}

std::optional<std::string> CrashJudge::judge_by_qemu(const SparseImage& image) {
  qemu_slot_.hold(image);
  const QemuVerdict verdict = qemu_check(qemu_path_);
  if (verdict.is_consistent()) return std::nullopt;
  return fmt::format("qemu-img check returned {}: {}", verdict.status, verdict.output);
}

}  // namespace blockdev::test
