// `quicksave image serve`: an image, or the disk of a snapshot, over NBD on a unix socket, until a
// signal or the end of this process. nbdkit speaks NBD; our plugin in it is the disk
// (blockdev/nbdkit/plugin.cc).

#pragma once

#include <functional>

#include "vmm/base/result.h"

namespace CLI {
class App;
}

namespace image {

// As for the other verbs in image_main.cc. The work prints the URI when clients can connect.
void add_serve(CLI::App& app, std::function<Result<int>()>& work);

}  // namespace image
