// Samples: what was measured again and again, and the few numbers that are said of it.
//
// Thread: one.

#pragma once

#include <vector>

#include "vmm/base/types.h"

namespace bench {

class Samples final {
 public:
  void add(double value) { values_.push_back(value); }
  u64 count() const { return values_.size(); }
  bool empty() const { return values_.empty(); }

  // The value below which `percent` of the samples lie (nearest rank); 0 without samples.
  double percentile(double percent) const;
  double median() const { return percentile(50); }

 private:
  std::vector<double> values_;
};

// A straight line by least squares. REQUIRES: two different x.
struct Line {
  double offset = 0;
  double slope = 0;
};
struct Point {
  double x = 0;
  double y = 0;
};
Line fit_line(const std::vector<Point>& points);

}  // namespace bench
