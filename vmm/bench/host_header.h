// What a figure is worth nothing without: on which host, when, by which command it was measured.

#pragma once

#include <string>
#include <utility>
#include <vector>

#include "vmm/bench/plan.h"

namespace bench {

// Pairs of what and which, in the order of printing.
std::vector<std::pair<std::string, std::string>> host_header(
    const Plan& plan, const std::vector<std::string>& arguments);

}  // namespace bench
