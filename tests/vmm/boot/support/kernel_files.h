// Kernels made by hand, one field at a time, so that a test can spoil exactly one.

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmm/base/types.h"
#include "vmm/boot/boot_params.h"
#include "vmm/boot/kernel.h"
#include "vmm/memory/guest_memory.h"

namespace boot_test {

using Bytes = std::vector<u8>;

// A file that lives as long as this object.
class TemporaryFile final {
 public:
  explicit TemporaryFile(const Bytes& content);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A bzImage whose payload holds a counting pattern; the header may be changed before build().
struct BzImage {
  boot::SetupHeader header{};
  u64 payload_bytes = 0x1000;

  BzImage();
  Bytes build() const;
};
u8 payload_byte(u64 index);

struct ElfSegment {
  u32 type = 1;  // PT_LOAD
  u64 address = 0;
  u64 memory_bytes = 0;
  Bytes content{};
  // When set, these stand in the program header in place of the true ones.
  u64 claimed_file_bytes = ~u64{0};
  u64 claimed_offset = ~u64{0};
  u64 alignment = 4;
};

struct Elf {
  u8 file_class = 2;
  u8 data_encoding = 1;
  u16 type = 2;
  u16 machine = 62;
  u64 entry = 0x100000;
  u64 segments_offset = 64;
  u16 segment_bytes = 56;
  int segment_count = -1;  // -1: as many as there are
  std::vector<ElfSegment> segments;

  Bytes build() const;
};
ElfSegment code_segment(u64 address, u64 memory_bytes = 0x2000);
ElfSegment pvh_note(u32 entry);
Bytes note(std::string_view name, u32 type, const Bytes& description);

std::unique_ptr<memory::GuestMemory> make_memory(u64 bytes = 64 * base::kMiB);
Bytes read_ram(const memory::GuestMemory& memory, u64 address, u64 length);

// load_kernel with `kernel` as the file.
Result<boot::StartRegisters> load(memory::GuestMemory& memory, const Bytes& kernel,
                                  boot::BootConfig config = {});
// The message of the refusal, with its hint; "" if the kernel was taken.
std::string refusal(const Bytes& kernel, u64 ram_bytes = 64 * base::kMiB,
                    boot::BootConfig config = {});

}  // namespace boot_test
