// KernelFile: the file a kernel or an initrd is read from, and the address range it was put into.
//
// Nothing of it is kept in our own memory: headers are read one structure at a time, contents go
// from the file into guest RAM. The file may change while we read: every structure is read once and
// its copy is what is checked and used.

#pragma once

#include <string>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/base/wire.h"
#include "vmm/memory/guest_memory.h"

namespace boot {

// Guest-physical, [start, end).
struct AddressRange {
  u64 start = 0;
  u64 end = 0;
};

// Where a kernel and an initrd may lie: RAM from 1 MiB to the device hole. RAM above 4 GiB is out
// of reach for 32-bit code and for the page tables a kernel starts with.
AddressRange loadable_ram(const memory::GuestMemory& memory);

class KernelFile final {
 public:
  // Refuses what is not a regular file, and the empty file.
  static Result<KernelFile> open(const std::string& path);

  u64 size_bytes() const { return size_bytes_; }

  // `what` names the structure in the message for a file that ends before it.
  Result<void> read(u64 offset, std::span<u8> out, std::string_view what) const;
  template <base::WireType T>
  Result<T> read(u64 offset, std::string_view what) const {
    T value;
    TRY(read(offset, {reinterpret_cast<u8*>(&value), sizeof value}, what));
    return value;
  }

  // File bytes to guest RAM. REQUIRES: the range lies within loadable_ram().
  Result<void> copy_to_guest(u64 offset, u64 length, memory::GuestMemory& memory, u64 address,
                             std::string_view what) const;

 private:
  KernelFile(base::Fd fd, u64 size_bytes) : fd_(std::move(fd)), size_bytes_(size_bytes) {}
  Result<void> check_within(u64 offset, u64 length, std::string_view what) const;

  base::Fd fd_;
  u64 size_bytes_;
};

}  // namespace boot
