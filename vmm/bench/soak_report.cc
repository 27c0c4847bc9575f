#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>

#include "vmm/bench/soak.h"

namespace bench {
namespace {

std::span<const SoakSample> settled(const SoakReport& report) {
  const std::span<const SoakSample> all = report.samples;
  return all.subspan(all.size() / 10);
}

}  // namespace

double SoakReport::bytes_per_revert() const {
  std::vector<Point> points;
  for (const SoakSample& sample : settled(*this)) {
    points.push_back({static_cast<double>(sample.revert), static_cast<double>(sample.own_bytes)});
  }
  return points.size() < 2 ? 0 : fit_line(points).slope;
}

Result<void> SoakReport::check_growth() const {
  if (samples.empty()) return {};
  const u64 before = settled(*this).front().descriptors;
  const u64 after = samples.back().descriptors;
  if (after > before) {
    return make_error(ErrorKind::failed, "{} descriptors became {} in {} reverts", before, after,
                      reverts);
  }
  const double growth = bytes_per_revert() * static_cast<double>(reverts);
  if (growth > static_cast<double>(kAllowedGrowthBytes)) {
    return make_error(ErrorKind::failed,
                      "resident memory grows by {:.1f} bytes a revert, {:.0f} KiB in {} reverts",
                      bytes_per_revert(), growth / static_cast<double>(base::kKiB), reverts);
  }
  return {};
}

std::string SoakReport::to_text() const {
  const SoakSample first = samples.empty() ? SoakSample{} : settled(*this).front();
  const SoakSample last = samples.empty() ? SoakSample{} : samples.back();
  return fmt::format(
      "{} reverts of a {} MiB guest in {:.1f} s, every one verified byte for byte; resident memory "
      "beside the guest's {:.2f} -> {:.2f} MiB, {:+.1f} bytes a revert; descriptors {} -> {}\n",
      reverts, memory_bytes / base::kMiB, seconds,
      static_cast<double>(first.own_bytes) / static_cast<double>(base::kMiB),
      static_cast<double>(last.own_bytes) / static_cast<double>(base::kMiB), bytes_per_revert(),
      first.descriptors, last.descriptors);
}

nlohmann::json SoakReport::to_json() const {
  nlohmann::json looks = nlohmann::json::array();
  for (const SoakSample& sample : samples) {
    looks.push_back({{"revert", sample.revert},
                     {"own_bytes", sample.own_bytes},
                     {"descriptors", sample.descriptors}});
  }
  return {{"reverts", reverts},
          {"memory_bytes", memory_bytes},
          {"seconds", seconds},
          {"bytes_per_revert", bytes_per_revert()},
          {"samples", looks}};
}

}  // namespace bench
