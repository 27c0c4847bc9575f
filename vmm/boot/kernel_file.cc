#include "vmm/boot/kernel_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"
#include "vmm/boot/layout.h"

namespace boot {

AddressRange loadable_ram(const memory::GuestMemory& memory) {
  return {kKernelAreaStart, memory.regions()[0].length_bytes};
}

Result<KernelFile> KernelFile::open(const std::string& path) {
  // O_NONBLOCK: a FIFO must be refused, not waited for.
  base::Fd fd = TRY(base::open_file(path, O_RDONLY | O_NONBLOCK));
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return errno_error("stat");
  if (!S_ISREG(status.st_mode)) return make_error(ErrorKind::usage, "not a regular file");
  if (status.st_size == 0) {
    return make_error(ErrorKind::corrupt, "the file is empty")
        .with_hint("was the download or the copy interrupted?");
  }
  return KernelFile(std::move(fd), static_cast<u64>(status.st_size));
}

Result<void> KernelFile::check_within(u64 offset, u64 length, std::string_view what) const {
  if (base::contains(size_bytes_, offset, length)) return {};
  return make_error(ErrorKind::corrupt,
                    "truncated: {} takes {} bytes at offset {:#x}, the file has {} bytes", what,
                    length, offset, size_bytes_)
      .with_hint("the file is incomplete or damaged; fetch it again");
}

Result<void> KernelFile::read(u64 offset, std::span<u8> out, std::string_view what) const {
  TRY(check_within(offset, out.size(), what));
  return base::read_exactly(fd_, out, offset);
}

Result<void> KernelFile::copy_to_guest(u64 offset, u64 length, memory::GuestMemory& memory,
                                       u64 address, std::string_view what) const {
  TRY(check_within(offset, length, what));
  const std::optional<memory::GuestBytes> bytes = memory.writable(Gpa{address}, length);
  CHECK(bytes.has_value());
  return base::read_exactly(fd_, {bytes->data, bytes->size}, offset);
}

}  // namespace boot
