// `quicksave bench revert` and `quicksave bench image`: measure this program, beside QEMU (and fio)
// where that is installed, on this host, and say which of the promised figures are met.
//
// Thread: the main thread, and nothing else runs in the process.

#pragma once

#include <string>
#include <vector>

#include "vmm/base/result.h"

namespace bench {

// `arguments` are those after "bench". Returns the exit status: 0 when everything asked for was
// measured, whatever came out.
int main(const std::vector<std::string>& arguments);

}  // namespace bench
