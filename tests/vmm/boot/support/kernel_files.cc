#include "tests/vmm/boot/support/kernel_files.h"

#include <stdlib.h>
#include <unistd.h>

#include <cstring>

#include "vmm/base/check.h"
#include "vmm/base/fd.h"

namespace boot_test {
namespace {

template <class T>
void put(Bytes& bytes, u64 offset, const T& value) {
  if (bytes.size() < offset + sizeof value) bytes.resize(offset + sizeof value);
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

}  // namespace

TemporaryFile::TemporaryFile(const Bytes& content) {
  const char* directory = ::getenv("TMPDIR");
  path_ = std::string(directory != nullptr ? directory : "/tmp") + "/quicksave-kernel-XXXXXX";
  const base::Fd fd(::mkstemp(path_.data()));
  CHECK(fd.get() >= 0 && base::write_all(fd, content).has_value());
}

TemporaryFile::~TemporaryFile() { ::unlink(path_.c_str()); }

u8 payload_byte(u64 index) { return static_cast<u8>(index * 7 + index / 256 + 1); }

BzImage::BzImage() {
  header.setup_sects = 1;
  header.syssize = static_cast<u32>(payload_bytes / 16);
  header.boot_flag = boot::kBootFlag;
  header.jump_opcode = 0xeb;
  header.jump_distance = 0x6a;
  header.header = boot::kHeaderMagic;
  header.version = 0x020f;
  header.loadflags = 1;
  header.initrd_addr_max = 0x7fffffff;
  header.xloadflags = 0x7f;
  header.cmdline_size = 2047;
  header.relocatable_kernel = 1;
  header.kernel_alignment = 0x200000;
  header.pref_address = 0x1000000;
  header.init_size = 0x100000;
}

Bytes BzImage::build() const {
  Bytes bytes((header.setup_sects + 1) * u64{512});
  put(bytes, boot::kSetupHeaderOffset, header);
  for (u64 i = 0; i < payload_bytes; ++i) bytes.push_back(payload_byte(i));
  return bytes;
}

Bytes Elf::build() const {
  Bytes bytes;
  put(bytes, 0, be32{0x7f454c46});
  put(bytes, 4, file_class);
  put(bytes, 5, data_encoding);
  put(bytes, 6, u8{1});
  put(bytes, 16, le16{type});
  put(bytes, 18, le16{machine});
  put(bytes, 20, le32{1});
  put(bytes, 24, le64{entry});
  put(bytes, 32, le64{segments_offset});
  put(bytes, 52, le16{64});
  put(bytes, 54, le16{segment_bytes});
  const u64 count = segment_count < 0 ? segments.size() : static_cast<u64>(segment_count);
  put(bytes, 56, le16{static_cast<u16>(count)});
  bytes.resize(64 + segments.size() * 56);
  u64 header_at = 64;
  for (const ElfSegment& segment : segments) {
    const u64 offset = bytes.size();
    bytes.insert(bytes.end(), segment.content.begin(), segment.content.end());
    put(bytes, header_at, le32{segment.type});
    put(bytes, header_at + 8,
        le64{segment.claimed_offset != ~u64{0} ? segment.claimed_offset : offset});
    put(bytes, header_at + 24, le64{segment.address});
    put(bytes, header_at + 32,
        le64{segment.claimed_file_bytes != ~u64{0} ? segment.claimed_file_bytes
                                                   : segment.content.size()});
    put(bytes, header_at + 40, le64{segment.memory_bytes});
    put(bytes, header_at + 48, le64{segment.alignment});
    header_at += 56;
  }
  return bytes;
}

ElfSegment code_segment(u64 address, u64 memory_bytes) {
  Bytes content;
  for (u64 i = 0; i < 0x1000; ++i) content.push_back(payload_byte(i));
  return {.address = address, .memory_bytes = memory_bytes, .content = content};
}

Bytes note(std::string_view name, u32 type, const Bytes& description) {
  Bytes bytes;
  put(bytes, 0, le32{static_cast<u32>(name.size() + 1)});
  put(bytes, 4, le32{static_cast<u32>(description.size())});
  put(bytes, 8, le32{type});
  bytes.insert(bytes.end(), name.begin(), name.end());
  bytes.resize((bytes.size() + 1 + 3) & ~std::size_t{3});
  bytes.insert(bytes.end(), description.begin(), description.end());
  bytes.resize((bytes.size() + 3) & ~std::size_t{3});
  return bytes;
}

ElfSegment pvh_note(u32 entry) {
  Bytes description;
  put(description, 0, le32{entry});
  return {.type = 4, .content = note("Xen", 18, description)};
}

std::unique_ptr<memory::GuestMemory> make_memory(u64 bytes) {
  return std::move(*memory::GuestMemory::create(bytes));
}

Bytes read_ram(const memory::GuestMemory& memory, u64 address, u64 length) {
  Bytes bytes(length);
  CHECK(memory.read(Gpa{address}, bytes));
  return bytes;
}

Result<boot::StartRegisters> load(memory::GuestMemory& memory, const Bytes& kernel,
                                  boot::BootConfig config) {
  const TemporaryFile file(kernel);
  config.kernel_path = file.path();
  return boot::load_kernel(memory, config);
}

std::string refusal(const Bytes& kernel, u64 ram_bytes, boot::BootConfig config) {
  const std::unique_ptr<memory::GuestMemory> memory = make_memory(ram_bytes);
  const Result<boot::StartRegisters> result = load(*memory, kernel, std::move(config));
  if (result) return "";
  return result.error().message() + "\nhint: " + result.error().hint();
}

}  // namespace boot_test
