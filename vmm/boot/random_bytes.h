// Random bytes from the host, for the guest's first entropy and its identity.

#pragma once

#include <span>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace boot {

Result<void> fill_random(std::span<u8> bytes);

}  // namespace boot
