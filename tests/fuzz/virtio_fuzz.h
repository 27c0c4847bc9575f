// What a hostile driver can do to a virtio device, as a sequence of bytes: register accesses of any
// width, bytes anywhere in the rings and buffers, service, lifecycle, save and restore. Run by
// libFuzzer and, with random bytes, by an ordinary test.

#pragma once

#include <span>

#include "vmm/base/types.h"

namespace test {

// Aborts (CHECK) or trips a sanitizer if the device lets the driver break anything of ours.
void run_virtio_sequence(std::span<const u8> input);

}  // namespace test
