// Changes to a closed qcow2 image that its header and its tables of references are enough for:
// another backing file, no content of its own any more, a smaller disk.
//
// What decides is one write of one sector; what comes before it changes nothing that counts, what
// comes after it only frees. After a crash the image is the old or the new one, with leaks at most.
// The exceptions stand below.
//
// Thread: any. REQUIRES: nobody else reads or writes the image.

#pragma once

#include <string>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace blockdev::qcow2 {

// Names another backing file, or none (both empty). The content above it is not looked at. The
// table of feature names goes if it would have to move. (In clusters too small for both names, or
// with unknown extensions of more than a sector, the header is written as a whole.)
Result<void> set_backing_file(const base::Fd& fd, const std::string& name,
                              const std::string& format);

// The same for the name alone; does nothing if that is the name already.
Result<void> set_backing_name(const base::Fd& fd, const std::string& name);

// Whether empty_image() would: the image is sound, and nothing in it is shared.
Result<void> check_can_be_emptied(const base::Fd& fd);

// Forgets all content: the disk reads as its backing file. Space goes back to the host.
// REQUIRES: the backing file holds the same; a crash leaves some of it there and some not.
Result<void> empty_image(const base::Fd& fd);

// REQUIRES: not larger than it is, whole sectors, not 0.
Result<void> shrink_image(const base::Fd& fd, u64 size_bytes);

}  // namespace blockdev::qcow2
