// `quicksave image WORDS`: qemu-img's verbs on our own reader and writer.
//
// Options are spelt as qemu-img's; what qemu-img has and we do not is refused by name, as any
// unknown option.

#pragma once

#include <string>
#include <vector>

namespace image {

// Prints all errors. The exit statuses are qemu-img's: 2 and 3 are findings of `check`, and what
// could not be done ends with 1 (2 for `compare`, whose 1 says that the images differ).
int main(const std::vector<std::string>& words);

}  // namespace image
