// Where the initrd goes: as high as the kernel allows, so that it is out of the way of whatever the
// kernel unpacks around itself.

#pragma once

#include <optional>
#include <string>

#include "vmm/boot/kernel_file.h"

namespace boot {

// The highest address that every kernel without a limit of its own accepts (Linux,
// Documentation/arch/x86/boot.rst, initrd_addr_max; also the value in today's kernels).
inline constexpr u64 kDefaultInitrdAddressMaximum = 0x7fffffff;

// Reads the initrd to the highest page-aligned place that ends at or below `address_maximum` and
// lies outside `kernel`. Without a path: an empty range.
Result<AddressRange> load_initrd(const std::optional<std::string>& path,
                                 memory::GuestMemory& memory, AddressRange kernel,
                                 u64 address_maximum);

// Same, without a file: nothing if there is no room. REQUIRES: size_bytes > 0.
std::optional<AddressRange> place_initrd(u64 size_bytes, AddressRange ram, AddressRange kernel,
                                         u64 address_maximum);

}  // namespace boot
