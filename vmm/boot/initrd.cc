#include "vmm/boot/initrd.h"

#include <algorithm>

#include "vmm/base/ranges.h"

namespace boot {
namespace {

// The last `size_bytes` of [start, end), page-aligned downwards.
std::optional<AddressRange> place_at_end(u64 size_bytes, u64 start, u64 end) {
  if (end <= start || size_bytes > end - start) return std::nullopt;
  const u64 address = base::align_down(end - size_bytes, base::kPageBytes);
  if (address < start) return std::nullopt;
  return AddressRange{address, address + size_bytes};
}

Result<AddressRange> load(const std::string& path, memory::GuestMemory& memory, AddressRange kernel,
                          u64 address_maximum) {
  const KernelFile file = TRY(KernelFile::open(path));
  const AddressRange ram = loadable_ram(memory);
  const std::optional<AddressRange> place =
      place_initrd(file.size_bytes(), ram, kernel, address_maximum);
  if (!place) {
    return make_error(ErrorKind::usage,
                      "{} bytes do not fit into RAM between {:#x} and {:#x} beside the kernel at "
                      "{:#x}-{:#x}",
                      file.size_bytes(), ram.start, ram.end, kernel.start, kernel.end)
        .with_hint(address_maximum < ram.end
                       ? fmt::format("the kernel takes no initrd above {:#x} (initrd_addr_max)",
                                     address_maximum)
                       : "give the machine more memory (-m)");
  }
  TRY(file.copy_to_guest(0, file.size_bytes(), memory, place->start, "initrd"));
  return *place;
}

}  // namespace

std::optional<AddressRange> place_initrd(u64 size_bytes, AddressRange ram, AddressRange kernel,
                                         u64 address_maximum) {
  const u64 end = std::min(ram.end, base::checked_add(address_maximum, 1).value_or(ram.end));
  const std::optional<AddressRange> top = place_at_end(
      size_bytes, std::max(ram.start, base::align_up(kernel.end, base::kPageBytes)), end);
  if (top) return top;
  return place_at_end(size_bytes, ram.start, std::min(end, kernel.start));
}

Result<AddressRange> load_initrd(const std::optional<std::string>& path,
                                 memory::GuestMemory& memory, AddressRange kernel,
                                 u64 address_maximum) {
  if (!path) return AddressRange{};
  return TRY_CONTEXT(load(*path, memory, kernel, address_maximum),
                     fmt::format("initrd \"{}\"", *path));
}

}  // namespace boot
