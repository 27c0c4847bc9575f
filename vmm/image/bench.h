// `quicksave image bench`: its options and its work.

#pragma once

#include <functional>

#include "vmm/base/result.h"

namespace CLI {
class App;
}

namespace image {

// Adds the verb to `app`; parsing it sets `work`.
void add_bench(CLI::App& app, std::function<Result<int>()>& work);

}  // namespace image
