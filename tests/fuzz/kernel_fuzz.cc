// libFuzzer on the kernel loader: whatever the file holds, the answer is registers or one message.
// Build with clang, -DFUZZ=ON, linked to boot with -fsanitize=fuzzer.

#include <sys/mman.h>
#include <unistd.h>

#include "vmm/base/check.h"
#include "vmm/base/fd.h"
#include "vmm/boot/kernel.h"

extern "C" int LLVMFuzzerTestOneInput(const u8* data, std::size_t size) {
  static const base::Fd file(::memfd_create("kernel", MFD_CLOEXEC));
  static const std::string path = fmt::format("/proc/self/fd/{}", file.get());
  CHECK(::ftruncate(file.get(), 0) == 0);
  CHECK(base::write_exactly(file, {data, size}, 0).has_value());

  const std::unique_ptr<memory::GuestMemory> memory =
      std::move(*memory::GuestMemory::create(64 * base::kMiB));
  const Result<boot::StartRegisters> result =
      boot::load_kernel(*memory, {.kernel_path = path, .command_line = "quiet"});
  // An entry outside of RAM would start the guest in nowhere.
  if (result) CHECK(memory->ram_offset(Gpa{result->rip}, 1).has_value());
  if (!result) CHECK(!result.error().message().empty());
  return 0;
}
