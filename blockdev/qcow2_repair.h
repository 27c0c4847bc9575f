// repair_image: makes the refcounts and COPIED flags of an image what its tables say.
//
// Both follow from the references that a check counts; an entry of a table that makes no sense does
// not, and stays as it is. While there is one, nothing is freed: what looks leaked may be what the
// damaged entry referred to. (qemu-img frees it.)
//
//   leaks   refcounts that are too high; COPIED flags if no other damage is left (with `all`, if
//           each entry that is left makes sense)
//   all     refcounts too low as well; refcount structures that cannot be used are written anew,
//           behind everything else
//
// Order: refcounts are raised and durable first, then others lowered, then the COPIED flags set
// right, then the dirty and corrupt bits taken away if nothing is left to repair. After each step
// the image is at least as sound as before, so that an interrupted repair is repeated.
//
// Thread: any. REQUIRES: nobody else reads or writes the image.

#pragma once

#include "blockdev/qcow2_check.h"

namespace blockdev::qcow2 {

enum class RepairScope : u8 { leaks, all };

struct RepairReport {
  u64 leaks_fixed = 0;
  u64 corruptions_fixed = 0;
  CheckReport after;
};

// Bits of features that are not known here go before the first write (qcow2.rst,
// "autoclear_features").
Result<void> clear_autoclear_bits(const base::Fd& fd);

Result<RepairReport> repair_image(const base::Fd& fd, RepairScope scope);

}  // namespace blockdev::qcow2
