// Giving a qcow2 image that nobody writes another name of its backing file, of the same format: for
// the tools that follow names inside images. Its content stays as it is (as qemu-img rebase -u).

#pragma once

#include <string>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace blockdev::qcow2 {

// Durable when it returns; does nothing if that is the name already. What changes lies in the
// header's first sectors and is written at once, so that a crash leaves one name or the other where
// a sector holds both.
Result<void> set_backing_name(const base::Fd& fd, const std::string& name);

}  // namespace blockdev::qcow2
