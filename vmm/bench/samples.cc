#include "vmm/bench/samples.h"

#include <algorithm>
#include <cmath>

namespace bench {

double Samples::percentile(double percent) const {
  if (values_.empty()) return 0;
  std::vector<double> sorted = values_;
  std::sort(sorted.begin(), sorted.end());
  const double rank = std::ceil(percent / 100 * static_cast<double>(sorted.size()));
  return sorted[static_cast<std::size_t>(std::max(rank, 1.0)) - 1];
}

Line fit_line(const std::vector<Point>& points) {
  const auto count = static_cast<double>(points.size());
  double sum_x = 0;
  double sum_y = 0;
  for (const Point& point : points) {
    sum_x += point.x;
    sum_y += point.y;
  }
  double covariance = 0;
  double variance = 0;
  for (const Point& point : points) {
    covariance += (point.x - sum_x / count) * (point.y - sum_y / count);
    variance += (point.x - sum_x / count) * (point.x - sum_x / count);
  }
  const double slope = covariance / variance;
  return {.offset = (sum_y - slope * sum_x) / count, .slope = slope};
}

}  // namespace bench
